/** Where a message is written: text, files, and the button that sends or stops. */

import { h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { say } from "./texts.js";
import type { File as TextFile } from "./tree.js";

const MOST_BYTES = 1 << 20;

export class Composer {
  readonly element: HTMLFormElement;
  readonly text: HTMLTextAreaElement;
  private readonly chips = h("ul", { class: "files" });
  private readonly send = h("button", { type: "submit", class: "send" });
  private readonly picker = h("input", { type: "file", multiple: true, hidden: true, tabindex: -1 });
  private files: TextFile[] = [];
  private busy = false;

  constructor(
    private readonly sent: (text: string, files: readonly TextFile[]) => void,
    private readonly stopped: () => void,
    private readonly problem: (message: string) => void,
    /** hears of each change, to keep it */
    private readonly changed: (text: string) => void,
  ) {
    this.text = h("textarea", { id: "question", rows: 1, placeholder: say("ask"), "aria-label": say("question") });
    this.text.addEventListener("input", () => {
      this.fit();
      this.changed(this.text.value);
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.busy) this.submit();
    });
    this.picker.addEventListener("change", () => void this.take(this.picker.files).then(() => (this.picker.value = "")));
    this.element = h("form", { class: "composer" }, this.chips,
      h("div", { class: "row" }, iconButton("attach", say("attach"), () => this.picker.click()), this.picker, this.text, this.send));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) this.stopped();
      else this.submit();
    });
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      void this.take(event.dataTransfer?.files ?? null);
    });
    this.setBusy(false);
  }

  get attached(): readonly TextFile[] {
    return this.files;
  }

  setBusy(busy: boolean): void {
    this.busy = busy;
    this.send.textContent = say(busy ? "stop" : "send");
  }

  fill(text: string, files: readonly TextFile[] = []): void {
    this.text.value = text;
    this.files = [...files];
    this.showFiles();
    this.fit();
    this.changed(text);
  }

  private submit(): void {
    const text = this.text.value;
    if (text.trim() === "" && this.files.length === 0) return;
    const files = this.files;
    this.fill("");
    this.sent(text, files);
  }

  private async take(files: FileList | null): Promise<void> {
    for (const file of files ?? []) {
      if (file.size > MOST_BYTES) {
        this.problem(say("tooLarge", file.name));
        continue;
      }
      try {
        const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
        if (text.includes("\0")) throw new Error();
        this.files.push({ name: file.name, text });
      } catch {
        this.problem(say("notText", file.name));
      }
    }
    this.showFiles();
  }

  private showFiles(): void {
    const chips = this.files.map((file) =>
      h("li", {}, icon("file"), ` ${file.name} `, iconButton("close", say("remove", file.name), () => {
        this.files = this.files.filter((other) => other !== file);
        this.showFiles();
        this.text.focus();
      })));
    this.chips.replaceChildren(...chips);
  }

  private fit(): void {
    this.text.rows = Math.min(10, this.text.value.split("\n").length);
  }
}

/** The extension as the editor sees it: provider, commands, status bar, and what other files give. */

import * as vscode from "vscode";

import { ServerError, type Completion } from "./client.js";
import { Completer } from "./completer.js";
import { around, Pieces } from "./context.js";
import { holeAt, isClosing, restOfLine } from "./hole.js";
import { Server } from "./server.js";
import { status } from "./status.js";

let extension: Extension | undefined;

export function activate(context: vscode.ExtensionContext): void {
  extension = new Extension();
  context.subscriptions.push(extension);
  void extension.start();
}

export async function deactivate(): Promise<void> {
  await extension?.leave();
}

class Extension implements vscode.InlineCompletionItemProvider, vscode.Disposable {
  private readonly log = vscode.window.createOutputChannel("edgespec");
  private readonly bar = vscode.window.createStatusBarItem(vscode.StatusBarAlignment.Right, 90);
  private readonly pieces = new Pieces(setting("context", 6000));
  private readonly completer = new Completer(() => this.server.client, this.pieces, (answer) => this.told(answer));
  private readonly parts: vscode.Disposable[];
  private server = this.newServer();
  private model = "";
  private waiting: AbortController | undefined;
  private disposed = false;

  constructor() {
    const on = vscode.commands.registerCommand;
    this.bar.command = "edgespec.log";
    this.parts = [
      this.log,
      this.bar,
      on("edgespec.start", () => this.start()),
      on("edgespec.stop", () => this.stop()),
      on("edgespec.toggle", () => vscode.workspace.getConfiguration("edgespec").update("enable", !setting("enable", true), true)),
      on("edgespec.log", () => this.log.show()),
      vscode.languages.registerInlineCompletionItemProvider({ pattern: "**" }, this),
      vscode.window.onDidChangeActiveTextEditor((editor) => editor && this.seen(editor)),
      vscode.workspace.onDidSaveTextDocument((document) => this.saved(document)),
      vscode.workspace.onDidChangeConfiguration((change) => change.affectsConfiguration("edgespec") && this.changed(change)),
    ];
    vscode.window.visibleTextEditors.forEach((editor) => this.seen(editor));
    this.bar.show();
  }

  async provideInlineCompletionItems(
    document: vscode.TextDocument,
    position: vscode.Position,
    asked: vscode.InlineCompletionContext,
    token: vscode.CancellationToken,
  ): Promise<vscode.InlineCompletionItem[]> {
    if (!setting("enable", true) || this.model === "" || asked.selectedCompletionInfo) return [];
    const hole = holeAt(lines(document), position.line, position.character);
    const byHand = asked.triggerKind === vscode.InlineCompletionTriggerKind.Invoke;
    const rest = restOfLine(hole);
    if (!byHand && !isClosing(rest)) return []; // in the middle of a line, only if asked
    const stop = new AbortController();
    token.onCancellationRequested(() => stop.abort());
    const wanted = {
      filename: vscode.workspace.asRelativePath(document.uri),
      hole,
      tokens: setting("tokens", 128),
      time: byHand ? 0 : setting("time", 1000),
      several: setting("lines", "auto") === "auto",
      pause: byHand ? 0 : setting("debounce", 75),
    };
    try {
      const shown = await this.completer.complete(wanted, stop.signal);
      if (!shown) return [];
      return [new vscode.InlineCompletionItem(shown.text, new vscode.Range(position, position.translate(0, shown.replaces)))];
    } catch (error) {
      this.say(String(error instanceof Error ? error.message : error));
      // It is gone, maybe with the window that had started it. Where the user has stopped it, there is no model.
      if (!(error instanceof ServerError) && this.model !== "") void this.start();
      return [];
    }
  }

  async start(): Promise<void> {
    this.waiting?.abort();
    const waiting = (this.waiting = new AbortController());
    this.model = "";
    this.show("$(sync~spin) edgespec", "The model is being loaded.");
    try {
      await this.server.ready(waiting.signal);
      this.model = await this.server.client.model();
      this.completer.forget();
      await vscode.commands.executeCommand("setContext", "edgespec.ready", true);
      this.told({ content: "", timings: {} });
    } catch (error) {
      if (waiting.signal.aborted) return;
      this.model = "";
      const message = error instanceof Error ? error.message : String(error);
      this.say(message);
      this.show("$(warning) edgespec", message);
    }
  }

  stop(): void {
    this.waiting?.abort();
    this.model = "";
    this.server.stop();
    this.show("$(circle-slash) edgespec", "Stopped.");
  }

  async leave(): Promise<void> {
    this.waiting?.abort();
    if (this.model !== "") await this.server.leave();
  }

  /** The editor calls it while `leave` runs. */
  dispose(): void {
    this.disposed = true;
    this.waiting?.abort();
    this.model = "";
    this.server.stop();
    this.parts.forEach((part) => part.dispose());
  }

  private newServer(): Server {
    const [url, command] = [setting("url", "http://127.0.0.1:8012"), setting("command", "edgespec")];
    return new Server({ url, command, model: setting("model", "default"), log: (line) => this.say(line) });
  }

  private changed(change: vscode.ConfigurationChangeEvent): void {
    this.pieces.resize(setting("context", 6000));
    if (!["model", "command", "url"].some((name) => change.affectsConfiguration(`edgespec.${name}`))) return;
    this.server.stop();
    this.server = this.newServer();
    void this.start();
  }

  private seen(editor: vscode.TextEditor): void {
    this.keep(editor.document, editor.selection.active.line);
  }

  private saved(document: vscode.TextDocument): void {
    const editor = vscode.window.visibleTextEditors.find((shown) => shown.document === document);
    this.keep(document, editor?.selection.active.line ?? 0);
  }

  private keep(document: vscode.TextDocument, line: number): void {
    if (document.uri.scheme !== "file" && document.uri.scheme !== "untitled") return;
    this.pieces.add({ filename: vscode.workspace.asRelativePath(document.uri), text: around(lines(document), line) });
  }

  private told(completion: Completion): void {
    const { text, why } = status(this.model, completion.timings);
    this.show(`$(zap) ${text}`, why);
  }

  private show(text: string, tooltip: string): void {
    this.bar.text = text;
    this.bar.tooltip = tooltip;
  }

  private say(line: string): void {
    if (!this.disposed) this.log.appendLine(line); // a channel that is closed throws
  }
}

function setting<T>(name: string, otherwise: T): T {
  return vscode.workspace.getConfiguration("edgespec").get(name, otherwise);
}

function lines(document: vscode.TextDocument): string[] {
  return document.getText().split(/\r\n|\n|\r/);
}

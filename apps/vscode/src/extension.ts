/** The extension as the editor sees it: provider, commands, status bar, and what other files give. */

import * as vscode from "vscode";

import { ServerError, type Completion } from "./client.js";
import { Completer } from "./completer.js";
import { around, Editors, Pieces } from "./context.js";
import { holeAt, isClosing, restOfLine } from "./hole.js";
import { Server } from "./server.js";
import { status } from "./status.js";

const SERVER = "http://127.0.0.1:8012";
/** where the editor keeps the key of a server that asks for one */
const KEY = "edgespec.key";
/** what the server reads too */
const KEY_VARIABLE = "EDGESPEC_API_KEY";

let extension: Extension | undefined;

export function activate(context: vscode.ExtensionContext): void {
  extension = new Extension(context.secrets);
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
  private readonly editors = new Editors<vscode.TextEditor>((editor) => this.seen(editor));
  private readonly parts: vscode.Disposable[];
  private server = this.newServer();
  private model = "";
  private waiting: AbortController | undefined;
  private disposed = false;

  constructor(private readonly secrets: vscode.SecretStorage) {
    const on = vscode.commands.registerCommand;
    this.bar.command = "edgespec.log";
    this.parts = [
      this.log,
      this.bar,
      on("edgespec.start", () => this.start()),
      on("edgespec.stop", () => this.stop()),
      on("edgespec.toggle", () => vscode.workspace.getConfiguration("edgespec").update("enable", !setting("enable", true), true)),
      on("edgespec.key", () => this.askKey()),
      on("edgespec.log", () => this.log.show()),
      vscode.languages.registerInlineCompletionItemProvider({ pattern: "**" }, this),
      vscode.window.onDidChangeActiveTextEditor((editor) => this.editors.change(editor)),
      vscode.workspace.onDidSaveTextDocument((document) => this.saved(document)),
      vscode.workspace.onDidChangeConfiguration((change) => change.affectsConfiguration("edgespec") && this.changed(change)),
    ];
    vscode.window.visibleTextEditors.forEach((editor) => this.seen(editor));
    this.editors.change(vscode.window.activeTextEditor);
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
      // It is gone, maybe with the window that had started it, or another one has its place. Where the user has stopped
      // it, there is no model.
      if ((!(error instanceof ServerError) || error.wantsKey) && this.model !== "") void this.start();
      return [];
    }
  }

  async start(): Promise<void> {
    if (this.disposed) return;
    this.waiting?.abort();
    const waiting = (this.waiting = new AbortController());
    this.model = "";
    this.show("$(sync~spin) edgespec", "The model is being loaded.");
    try {
      this.server.key = (await this.key()) || (process.env[KEY_VARIABLE] ?? "");
      await this.server.ready(waiting.signal);
      const model = await this.server.client.model();
      if (waiting.signal.aborted) return;
      this.model = model;
      this.completer.forget();
      await vscode.commands.executeCommand("setContext", "edgespec.ready", true);
      this.told({ content: "", timings: {} });
    } catch (error) {
      if (waiting.signal.aborted) return;
      this.model = "";
      const wantsKey = error instanceof ServerError && error.wantsKey;
      const hint = wantsKey ? `. Run the command "edgespec: Set the API Key", or set ${KEY_VARIABLE}` : "";
      const message = (error instanceof Error ? error.message : String(error)) + hint;
      this.say(message);
      this.show("$(warning) edgespec", message);
    }
  }

  stop(): void {
    this.waiting?.abort();
    this.model = "";
    void this.server.stop();
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
    void this.server.stop();
    this.parts.forEach((part) => part.dispose());
  }

  /** It goes into the editor's own storage, and to the server. */
  private async askKey(): Promise<void> {
    const key = await vscode.window.showInputBox({
      title: "API key of the edgespec server",
      prompt: "The one of its --api-key. Empty: none.",
      password: true,
      ignoreFocusOut: true,
      validateInput: (text) => (/^[\x20-\x7e]*$/.test(text) ? undefined : "Characters of ASCII only."),
    });
    if (key === undefined) return;
    if (key.trim() === "") await this.secrets.delete(KEY);
    else await this.secrets.store(KEY, key.trim());
    void this.server.stop(); // one that was started here asks for the old one
    await this.start();
  }

  private async key(): Promise<string> {
    try {
      return (await this.secrets.get(KEY)) ?? "";
    } catch (error) {
      this.say(String(error)); // a system without such a store: most servers ask for none
      return "";
    }
  }

  private newServer(): Server {
    const [url, command] = [setting("url", SERVER), setting("command", "edgespec")];
    return new Server({ url, command, model: setting("model", "default"), log: (line) => this.say(line) });
  }

  private changed(change: vscode.ConfigurationChangeEvent): void {
    this.pieces.resize(setting("context", 6000));
    if (!["model", "command", "url"].some((name) => change.affectsConfiguration(`edgespec.${name}`))) return;
    this.waiting?.abort();
    this.model = "";
    const ended = this.server.stop();
    this.server = this.newServer();
    void ended.then(() => this.start()); // until it has ended, the old one may answer
  }

  private seen(editor: vscode.TextEditor): void {
    if (editor.document.isClosed) return; // its changes may have been thrown away
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

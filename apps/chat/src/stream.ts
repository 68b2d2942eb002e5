/** Server-sent events from the bytes of an answer. */

export class Events {
  private readonly decoder = new TextDecoder();
  private rest = "";

  /** The events that are whole by now. Comments are left out. */
  push(bytes: Uint8Array): unknown[] {
    this.rest += this.decoder.decode(bytes, { stream: true });
    const parts = this.rest.split("\n\n");
    this.rest = parts.pop() ?? "";
    return parts
      .map((part) => part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n"))
      .filter((data) => data !== "")
      .map((data) => JSON.parse(data) as unknown);
  }
}

/** Cuts text that grows into sentences, for those who listen: a word at a time would never end. */
export class Sentences {
  private told = 0;

  /** What is new and whole in `text`; with `end`, all that is left. */
  next(text: string, end = false): string {
    const fresh = text.slice(this.told);
    const stops = [...fresh.matchAll(/[.!?:](?=\s)|\n/g)];
    const last = stops.at(-1);
    const length = end ? fresh.length : last === undefined ? 0 : last.index + 1;
    this.told += length;
    return fresh.slice(0, length).trim();
  }
}

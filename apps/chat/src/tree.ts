/** Branches of a chat: turns with parents, and the leaf of the branch that is shown. */

export interface File {
  readonly name: string;
  readonly text: string;
}

export interface Timings {
  readonly prompt_n: number;
  readonly prompt_ms: number;
  readonly predicted_n: number;
  readonly predicted_ms: number;
  readonly predicted_per_second: number;
  readonly draft_n: number;
  readonly draft_n_accepted: number;
}

/** Of an answer. An empty object: it is cut off. */
export interface Facts {
  readonly model?: string;
  readonly finish?: string;
  readonly timings?: Timings;
  readonly speedup?: number | null;
  readonly why?: readonly string[];
  readonly context?: number;
  readonly context_length?: number;
  readonly exact?: boolean;
  readonly stopped?: boolean;
  readonly edited?: boolean;
  readonly error?: string;
  readonly drafted?: readonly (readonly [number, string])[];
}

export interface Turn {
  readonly id: number;
  readonly parent: number | null;
  readonly role: "user" | "assistant";
  content: string;
  readonly files: readonly File[];
  facts: Facts | null;
}

/** From the first turn to `leaf`. */
export function branch(turns: readonly Turn[], leaf: number | null): Turn[] {
  const known = new Map(turns.map((turn) => [turn.id, turn]));
  const found: Turn[] = [];
  for (let at = leaf; at !== null && known.has(at); ) {
    const turn = known.get(at)!;
    known.delete(at);
    found.unshift(turn);
    at = turn.parent;
  }
  return found;
}

/** The turns beside one, itself included, oldest first. */
export function siblings(turns: readonly Turn[], turn: Turn): Turn[] {
  return turns.filter((other) => other.parent === turn.parent && other.role === turn.role);
}

/** The newest leaf behind a turn. */
export function leafOf(turns: readonly Turn[], turn: number): number {
  let at = turn;
  for (;;) {
    const children = turns.filter((other) => other.parent === at);
    const last = children.at(-1);
    if (last === undefined) return at;
    at = last.id;
  }
}

/** Pieces of an answer with the drafter whose tokens they were; "" where the model wrote them itself. */
export function spans(content: string, drafted: Facts["drafted"]): { text: string; drafter: string }[] {
  const characters = [...content];
  const found: { text: string; drafter: string }[] = [];
  let at = 0;
  for (const [length, drafter] of drafted ?? []) {
    if (at < characters.length) found.push({ text: characters.slice(at, at + length).join(""), drafter });
    at += length;
  }
  if (at < characters.length) found.push({ text: characters.slice(at).join(""), drafter: "" });
  return found;
}

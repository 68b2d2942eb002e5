/** What the model reads besides the file itself: pieces of other files, in an order that seldom changes.
 *
 * The server keeps what it has read, from the first character that is unchanged. So a piece is added behind the others,
 * and when they are too long, the older half goes at once: then everything is read again once, and not at every piece.
 */

export interface Piece {
  readonly filename: string;
  readonly text: string;
}

/** Lines of a piece. */
export const PIECE_LINES = 64;

export class Pieces {
  private pieces: Piece[] = [];

  /** budget: most characters of all pieces. */
  constructor(private budget: number) {}

  resize(budget: number): void {
    this.budget = budget;
    this.shorten();
  }

  /** Adds a piece behind the others, in place of what it mostly repeats. Blank text and text over the budget stay out. */
  add(piece: Piece): void {
    const size = length(piece);
    if (piece.text.trim() === "" || size > this.budget) return;
    if (this.pieces.some((old) => old.filename === piece.filename && old.text === piece.text)) return;
    this.pieces = this.pieces.filter((old) => !(old.filename === piece.filename && similar(old.text, piece.text) > 0.8));
    this.pieces.push(piece);
    this.shorten();
  }

  /** Without a file's own pieces: what is in front of the cursor is sent anyway. */
  except(filename: string): Piece[] {
    return this.pieces.filter((piece) => piece.filename !== filename);
  }

  private shorten(): void {
    if (total(this.pieces) <= this.budget) return;
    while (this.pieces.length > 0 && total(this.pieces) > this.budget / 2) this.pieces.shift();
  }
}

/** Tells of each editor that is shown, and once more when another takes its place: it may have been edited meanwhile. */
export class Editors<Editor> {
  private last: Editor | undefined;

  constructor(private readonly keep: (editor: Editor) => void) {}

  /** editor: undefined where none is shown. */
  change(editor: Editor | undefined): void {
    if (this.last !== undefined && this.last !== editor) this.keep(this.last);
    if (editor !== undefined) this.keep(editor);
    this.last = editor;
  }
}

/** The lines around a place, at most PIECE_LINES of them. `line` counts from 0. */
export function around(lines: readonly string[], line: number): string {
  const first = Math.max(0, Math.min(line - PIECE_LINES / 2, lines.length - PIECE_LINES));
  return lines.slice(first, first + PIECE_LINES).join("\n");
}

/** The share of the shorter text's distinct lines that are in the other too. */
export function similar(a: string, b: string): number {
  const [one, two] = [new Set(a.split("\n")), new Set(b.split("\n"))];
  const [few, many] = one.size < two.size ? [one, two] : [two, one];
  let same = 0;
  for (const line of few) if (many.has(line)) same++;
  return same / few.size;
}

function length(piece: Piece): number {
  return piece.filename.length + piece.text.length;
}

function total(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, piece) => sum + length(piece), 0);
}

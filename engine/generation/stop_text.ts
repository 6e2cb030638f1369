/** Stop texts: detects texts that end the generation in a growing text, and removes them. */

/** Forwards pieces of a text up to the first stop text. */
export class StopText {
  readonly #stops: readonly string[];
  #held = "";
  #stopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether a stop text was found. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** The text that can be forwarded; a possible start of a stop text is held back. */
  push(piece: string): string {
    if (this.#stopped) return "";
    if (this.#stops.length === 0) return piece;
    const text = this.#held + piece;
    const found = this.#stops.map((stop) => text.indexOf(stop))
      .filter((at) => at >= 0);
    if (found.length > 0) {
      this.#stopped = true;
      this.#held = "";
      return text.slice(0, Math.min(...found));
    }
    const held = startLength(text, this.#stops);
    this.#held = text.slice(text.length - held);
    return text.slice(0, text.length - held);
  }

  /** The held-back text. */
  end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

/** Number of characters at the end of a text that may start one of some texts. */
export function startLength(text: string, wanted: readonly string[]): number {
  const longest = Math.max(0, ...wanted.map(({ length }) => length - 1));
  for (let n = Math.min(longest, text.length); n > 0; n--) {
    const end = text.slice(text.length - n);
    if (wanted.some((one) => one.startsWith(end))) return n;
  }
  return 0;
}

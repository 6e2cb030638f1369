/** Texts that end what is generated: they are looked for as it grows, and are not part of it. */

/** Takes pieces of a text and gives them on up to the first of some texts. */
export class StopText {
  readonly #stops: readonly string[];
  #held = "";
  #stopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether one of the texts was there. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** What can be given on: what may be the beginning of one of the texts is held back. */
  push(piece: string): string {
    if (this.#stopped) return "";
    const text = this.#held + piece;
    const found = this.#stops.map((stop) => text.indexOf(stop))
      .filter((at) => at >= 0);
    if (found.length > 0) {
      this.#stopped = true;
      this.#held = "";
      return text.slice(0, Math.min(...found));
    }
    const held = this.#beginning(text);
    this.#held = text.slice(text.length - held);
    return text.slice(0, text.length - held);
  }

  /** What was still held back. */
  end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Characters at the end of a text that one of the texts may begin with. */
  #beginning(text: string): number {
    const longest = Math.max(0, ...this.#stops.map(({ length }) => length - 1));
    for (let n = Math.min(longest, text.length); n > 0; n--) {
      const end = text.slice(text.length - n);
      if (this.#stops.some((stop) => stop.startsWith(end))) return n;
    }
    return 0;
  }
}

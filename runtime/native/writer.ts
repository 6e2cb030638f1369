/** Lines of indented C with unique names. */

/** Collects the body of a function. */
export class Writer {
  readonly #lines: string[] = [];
  #depth = 1;
  #names = 0;

  /** Add a line. */
  line(text: string): void {
    this.#lines.push("  ".repeat(this.#depth) + text);
  }

  /** Adds `head {`, the lines of `body`, and `}`. */
  block(head: string, body: () => void): void {
    this.line(head === "" ? "{" : `${head} {`);
    this.#depth++;
    body();
    this.#depth--;
    this.line("}");
  }

  /**
   * A name that starts with `stem`, reduced to letters and digits: names in a plan may be untrusted, and the text is
   * compiled.
   */
  name(stem: string): string {
    return `${stem.replace(/[^A-Za-z0-9]/g, "").slice(0, 40)}_${this
      .#names++}`;
  }

  text(): string {
    return this.#lines.join("\n");
  }
}

/** Untrusted text inside a message: on one line, without codes that a terminal obeys, and not longer than a line. */

/** Longest text that a message repeats in full, in UTF-16 units. */
const LONGEST = 200;

/** Control and format characters (bidirectional ones too), line separators, and halves of characters. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/**
 * A name or value as it is shown in a message: what does not print is written as `\u{1b}`, and of a long text the
 * beginning, the number of characters left out and the end.
 */
export function shown(text: string): string {
  const half = LONGEST / 2;
  const short = text.length <= LONGEST
    ? text
    : `${text.slice(0, half)}…(${text.length - LONGEST} more)…${
      text.slice(-half)
    }`;
  return short.replace(UNPRINTABLE, escaped);
}

/** Text of several lines without the codes that a terminal obeys. */
export function printable(text: string): string {
  return text.replace(
    UNPRINTABLE,
    (character) => /[\n\t]/.test(character) ? character : escaped(character),
  );
}

function escaped(character: string): string {
  return `\\u{${character.codePointAt(0)!.toString(16)}}`;
}

/** Text on one line: names and labels of a plan may hold anything. */
export function oneLine(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, " ");
}

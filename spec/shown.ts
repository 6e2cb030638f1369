/** Untrusted text in messages: on one line, without terminal control codes, and limited in length. */

/** Maximum length of a text that a message repeats completely, in UTF-16 units. */
const LONGEST = 200;

/** Control and format characters (including bidirectional ones), line separators, and surrogate halves. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/**
 * A name or value in a message: unprintable characters are printed as `\u{1b}`; a long text is shortened to its start,
 * the number of omitted characters and its end.
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

/** Text of several lines without terminal control codes. */
export function printable(text: string): string {
  return text.replace(
    UNPRINTABLE,
    (character) => /[\n\t]/.test(character) ? character : escaped(character),
  );
}

function escaped(character: string): string {
  return `\\u{${character.codePointAt(0)!.toString(16)}}`;
}

/** Text on one line: names and labels of a plan may contain any characters. */
export function oneLine(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, " ");
}

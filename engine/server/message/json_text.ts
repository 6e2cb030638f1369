/** Reads JSON texts that are still incomplete. */

/** A value in a text. */
interface ValueText {
  /** Its JSON, or the start of it. */
  readonly text: string;
  readonly complete: boolean;
}

/** The fields of an object, and the index after it. Undefined if it is incomplete. */
export interface ObjectText {
  readonly fields: ReadonlyMap<string, ValueText>;
  readonly end: number | undefined;
}

/** The index after the JSON value at an index. Undefined if the value is incomplete. */
export function jsonEnd(text: string, at: number): number | undefined {
  if (text[at] === '"') return stringEnd(text, at);
  if (text[at] !== "{" && text[at] !== "[") {
    const end = text.slice(at).search(/[\s,\]}]/);
    return end < 0 ? undefined : at + end;
  }
  let depth = 0;
  for (let i = at; i < text.length; i++) {
    const character = text[i];
    if (character === '"') {
      const end = stringEnd(text, i);
      if (end === undefined) return undefined;
      i = end - 1;
    } else if (character === "{" || character === "[") depth++;
    else if ((character === "}" || character === "]") && --depth === 0) {
      return i + 1;
    }
  }
  return undefined;
}

function stringEnd(text: string, at: number): number | undefined {
  for (let i = at + 1; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === '"') return i + 1;
  }
  return undefined;
}

/** Reads the object at an index. */
export function objectText(text: string, at: number): ObjectText {
  const fields = new Map<string, ValueText>();
  const skip = /[\s,:]*/y;
  const next = (from: number) => {
    skip.lastIndex = from;
    return from + skip.exec(text)![0].length;
  };
  for (let i = next(at + 1); i < text.length; i = next(i)) {
    if (text[i] === "}") return { fields, end: i + 1 };
    const end = text[i] === '"' ? stringEnd(text, i) : undefined;
    const key = end && parsed(text.slice(i, end));
    if (!end || typeof key !== "string") break;
    const value = next(end);
    if (value === text.length) break;
    const valueEnd = jsonEnd(text, value);
    const complete = valueEnd !== undefined;
    fields.set(key, { text: text.slice(value, valueEnd), complete });
    if (!complete) break;
    i = valueEnd;
  }
  return { fields, end: undefined };
}

/** The value of a JSON text. Undefined if it is not JSON. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

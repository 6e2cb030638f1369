/** Shares equal bodies of kernels: facts about a kernel are cached by its body. */

import type { Expr, Kernel, Stmt } from "./tree.ts";
import { bodiesOf, expressionsOf, someOperand } from "./walk.ts";

type Body = Kernel["body"];

/** A body that represents all equal ones, and its number. */
export interface SharedBody {
  readonly body: Body;
  readonly number: number;
}

/** Shared bodies by hash, as long as they are used. */
const byHash = new Map<number, WeakRef<SharedBody>[]>();

/** The shared body of a body. */
const known = new WeakMap<Body, SharedBody>();

let count = 0;

/** The first equal body. Plans that are compiled one after another share most kernels. */
export function sharedBody(body: Body): SharedBody {
  const found = known.get(body) ?? findShared(body);
  known.set(body, found);
  return found;
}

function findShared(body: Body): SharedBody {
  const hash = hashOf(body);
  const used = (byHash.get(hash) ?? []).filter((other) => other.deref());
  for (const other of used) {
    const shared = other.deref();
    if (shared && isSame(shared.body, body)) return shared;
  }
  const shared = { body, number: count++ };
  byHash.set(hash, [...used, new WeakRef(shared)]);
  return shared;
}

/** A number that equal bodies have, and few others. */
function hashOf(body: Body): number {
  let hash = 0;
  const add = (n: number) => {
    hash = Math.imul(hash ^ n, 0x01000193) + (hash >>> 15) | 0;
  };
  const number = new Float64Array(1);
  const words = new Uint32Array(number.buffer);
  const expression = (e: Expr): false => {
    add(textHash(e.op) ^ e.type.charCodeAt(0));
    switch (e.op) {
      case "const":
        number[0] = Number(e.value);
        add(words[0]!);
        add(words[1]!);
        break;
      case "local":
      case "id":
        add(textHash(e.name));
        break;
      case "load":
        add(textHash(e.binding));
        break;
      case "unary":
      case "binary":
      case "call":
        add(textHash(e.fn));
    }
    someOperand(e, expression);
    return false;
  };
  const block = (body: readonly Stmt[]) => {
    add(body.length);
    for (const s of body) {
      add(textHash(s.op));
      if ("name" in s) add(textHash(s.name));
      for (const e of expressionsOf(s)) expression(e);
      for (const inner of bodiesOf(s)) block(inner);
    }
  };
  block(body);
  return hash;
}

/** A hash of a name, which is not empty. */
function textHash(text: string): number {
  const { length } = text;
  return text.charCodeAt(0) << 16 ^ text.charCodeAt(length - 1) << 8 ^ length;
}

/** Whether two trees are equal. 0 and -0 differ. */
function isSame(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) {
    return Object.is(a, b);
  }
  if (a === b) return true;
  const [left, right] = [a, b] as { readonly [key: string]: unknown }[];
  for (const key in left) if (!isSame(left[key], right![key])) return false;
  for (const key in right) {
    if (left![key] === undefined && right[key] !== undefined) return false;
  }
  return true;
}

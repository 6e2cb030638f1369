/** Shares equal bodies of kernels: facts about a kernel are cached by its body. */

import { isSame } from "../same.ts";
import type { Expr, Kernel } from "./tree.ts";
import { expressionsOf, someOperand, walkStatements } from "./walk.ts";

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
  walkStatements(body, (s) => {
    add(textHash(s.op));
    if ("name" in s) add(textHash(s.name));
    expressionsOf(s).forEach(expression);
  });
  return hash;
}

/** A hash of a name, which is not empty. */
function textHash(text: string): number {
  const { length } = text;
  return text.charCodeAt(0) << 16 ^ text.charCodeAt(length - 1) << 8 ^ length;
}

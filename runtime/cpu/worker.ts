/**
 * The program of a worker thread, as text. Workers start without the loaders of the main thread, so it is plain
 * JavaScript. It receives and sends messages by `port`, which the starter of the thread declares before it.
 */

import {
  ARENA_ADDRESS,
  CONTROL,
  HEAP_ADDRESS,
  SHARE_FROM_MS,
} from "./control.ts";
import { RECORD } from "./print.ts";

/**
 * Worker 0 executes a batch in order. It executes short launches alone, and shares long ones with the other workers by
 * a counter of workgroups in the record itself, so that a late worker finds nothing left rather than the wrong work.
 * Waking a sleeping worker takes tens of microseconds, hundreds on a virtual machine. The other workers therefore stay
 * awake during a batch, but spin for less than a millisecond, and are woken before short launches if a long one follows
 * soon.
 */
export const WORKER_SOURCE = `
"use strict";
const C = ${JSON.stringify(CONTROL)}, R = ${JSON.stringify(RECORD)};
const fns = [], cost = [];
let memory, index, threads, words, received = 0, seen = 0;
const SHARE_FROM = ${SHARE_FROM_MS}, CALL_BEFORE = 0.04, SPINS = 2000, BATCH_SPINS = 20000;

// A thread that waits for work receives no messages: it returns to its event loop for each.
port.onmessage = ({ data }) => {
  if (data.memory) {
    ({ memory, index, threads } = data);
    words = new Int32Array(memory.buffer, 0, ${HEAP_ADDRESS / 4});
  } else {
    received++;
    install(data);
  }
  if (index === 0) lead();
  else help();
};

function hasMail() {
  return Atomics.load(words, C.mail) !== received;
}

function install({ id, module, first, count }) {
  try {
    const { exports } = new WebAssembly.Instance(module, { env: { memory } });
    for (let i = 0; i < count; i++) {
      fns[first + i] = exports["run" + i];
      cost[first + i] = -1;
    }
    port.postMessage({ ready: id });
  } catch (error) {
    port.postMessage({ failed: String(error) });
  }
}

function take(r) {
  const fn = fns[words[r]], groups = words[r + R.groups], chunk = words[r + R.chunk];
  const scratch = words[C.scratch + index];
  let start, taken = 0;
  while ((start = Atomics.add(words, r + R.next, chunk)) < groups) {
    const end = Math.min(start + chunk, groups);
    try {
      fn(r * 4, start, end, scratch);
    } catch (error) {
      port.postMessage({ failed: String(error) });
    }
    taken += end - start;
    Atomics.add(words, r + R.done, end - start);
    if (index > 0 && Atomics.load(words, C.waiting)) Atomics.notify(words, r + R.done);
  }
  return taken;
}

function share(r, groups, each) {
  const even = Math.ceil(groups / (threads * 8));
  words[r + R.chunk] = Math.max(1, Math.min(Math.ceil(groups / threads), Math.max(even, Math.ceil(0.004 / each))));
  Atomics.store(words, C.current, r);
  Atomics.add(words, C.signal, 1);
  if (Atomics.load(words, C.sleepers) > 0) Atomics.notify(words, C.signal);
  const begin = performance.now(), taken = take(r), busy = performance.now() - begin;
  let spins = 0, done;
  while ((done = Atomics.load(words, r + R.done)) < groups) {
    if (++spins < SPINS) continue;
    Atomics.store(words, C.waiting, 1);
    Atomics.wait(words, r + R.done, done, 1);
    Atomics.store(words, C.waiting, 0);
  }
  // Excludes the overhead of sharing; otherwise short launches would continue to be shared.
  return taken > 0 ? busy / taken : each;
}

function isShort(r) {
  const op = words[r], groups = words[r + R.groups];
  return groups === 1 || (cost[op] >= 0 && cost[op] * groups < SHARE_FROM);
}

let called = 0;
function callFor(r, end) {
  if (Atomics.load(words, C.sleepers) === 0) return;
  let ms = 0;
  for (; r < end && isShort(r); r += words[r + R.words]) {
    ms += Math.max(0, cost[words[r]]) * words[r + R.groups];
    if (ms > CALL_BEFORE) return;
  }
  if (r >= end || r === called) return;
  called = r;
  Atomics.add(words, C.signal, 1);
  Atomics.notify(words, C.signal);
}

function runBatch(length) {
  const begin = ${ARENA_ADDRESS / 4}, end = begin + length;
  const scratch = words[C.scratch];
  const origin = performance.now();
  let last = origin;
  called = 0;
  for (let r = begin; r < end; r += words[r + R.words]) {
    const op = words[r], groups = words[r + R.groups];
    let each;
    if (threads === 1 || isShort(r)) {
      callFor(r, end);
      fns[op](r * 4, 0, groups, scratch);
    } else {
      if (cost[op] < 0) {
        fns[op](r * 4, 0, 1, scratch);
        cost[op] = performance.now() - last;
        words[r + R.next] = 1;
        words[r + R.done] = 1;
      }
      each = share(r, groups, cost[op]);
    }
    const now = performance.now();
    words[r + R.start] = (last - origin) * 1e5;
    words[r + R.end] = (now - origin) * 1e5;
    each ??= (now - last) / groups;
    cost[op] = cost[op] < 0 ? each : 0.5 * (cost[op] + each);
    words[r + R.cost] = Math.min(2e9, 1e9 * cost[op]);
    last = now;
  }
  Atomics.store(words, C.current, 0);
  for (let i = 1; i < threads; i++) {
    let spins = 0;
    while (Atomics.load(words, C.inside + i)) {
      if (++spins > SPINS) Atomics.wait(words, C.inside + i, 1, 0.1);
    }
  }
}

function lead() {
  while (!hasMail()) {
    const length = Atomics.exchange(words, C.batch, 0);
    if (!length) {
      Atomics.wait(words, C.work, seen);
      seen = Atomics.load(words, C.work);
      continue;
    }
    try {
      runBatch(length);
      port.postMessage({ done: true });
    } catch (error) {
      port.postMessage({ failed: String(error) });
    }
  }
}

function help() {
  while (!hasMail()) {
    let spins = 0;
    while (
      Atomics.load(words, C.signal) === seen &&
      (++spins < SPINS || spins < BATCH_SPINS && Atomics.load(words, C.current))
    );
    if (Atomics.load(words, C.signal) === seen) {
      Atomics.add(words, C.sleepers, 1);
      Atomics.wait(words, C.signal, seen);
      Atomics.sub(words, C.sleepers, 1);
    }
    seen = Atomics.load(words, C.signal);
    Atomics.store(words, C.inside + index, 1);
    const r = Atomics.load(words, C.current);
    if (r) take(r);
    Atomics.store(words, C.inside + index, 0);
  }
}
`;

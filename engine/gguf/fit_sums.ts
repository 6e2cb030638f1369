/**
 * Sums over the elements of a group for all candidates of a scale, as WebAssembly: two candidates are in the lanes of a
 * vector. Each sum is in f64, in the order of elements.
 */

import {
  MEMORY_PAGES,
  WasmFunction,
  WasmModule,
} from "../../runtime/cpu/wasm.ts";
import { webAssembly } from "../../runtime/cpu/web_assembly.ts";

/** Elements of the longest group, and the number of candidates: even. */
export const LONGEST = 32, COUNT = 20;

/** Bytes of an f64, and of two. */
const F64 = 8, PAIR = 16;

/** Arrays of f64 in the memory: their lengths. */
const LENGTHS = {
  /** Elements: as they are scaled, weights, products with weights, and values. */
  scaled: LONGEST,
  weights: LONGEST,
  products: LONGEST,
  values: LONGEST,
  /** Smallest and largest code, each twice. */
  low: 2,
  high: 2,
  /** Of candidates: inverse scales, and weighted sums of codes, of their squares and of products with values. */
  inverses: COUNT,
  codeSums: COUNT,
  squareSums: COUNT,
  productSums: COUNT,
  /** Of candidates: scale and minimum, and their weighted squared errors. */
  scales: COUNT,
  minimums: COUNT,
  errors: COUNT,
};

type Name = keyof typeof LENGTHS;

/** Returns the byte offset of each array. */
function offsetsOf(): { readonly [name in Name]: number } {
  let at = 0;
  return Object.fromEntries(
    Object.entries(LENGTHS).map(([name, length]) => {
      const offset = at;
      at += length * F64;
      return [name, offset];
    }),
  ) as { readonly [name in Name]: number };
}

const AT = offsetsOf();

/** The arrays, and functions that fill sums from them for a number of elements. */
export interface FitSums {
  readonly arrays: { readonly [name in Name]: Float64Array };
  /** Rounds scaled elements times `inverses` to codes; fills `codeSums`, `squareSums` and `productSums`. */
  readonly sums: (elements: number) => void;
  /** Fills `errors` of `scales` and `minimums`. */
  readonly errors: (elements: number) => void;
}

/** A loop over elements inside a loop over pairs of candidates. */
interface Loops {
  readonly fn: WasmFunction;
  /** Local: bytes of the first candidate of the pair. */
  readonly pair: number;
  /** Local: bytes of the element. */
  readonly element: number;
  readonly sums: readonly number[];
}

/** Returns a function of the number of elements that stores sums over elements for each pair of candidates. */
function overPairs(
  results: readonly Name[],
  begin: (loops: Loops) => (loops: Loops) => void,
): WasmFunction {
  const fn = new WasmFunction(["i32"], []);
  const [pair, element] = [fn.local("i32"), fn.local("i32")];
  const sums = results.map(() => fn.local("v128"));
  const loops = { fn, pair, element, sums };
  const next = (local: number, step: number) => {
    fn.get(local);
    fn.i32(step);
    fn.op("i32.add");
    fn.tee(local);
  };
  fn.loop();
  for (const sum of sums) {
    fn.f64x2(0);
    fn.set(sum);
  }
  const body = begin(loops);
  fn.i32(0);
  fn.set(element);
  fn.loop();
  body(loops);
  next(element, F64);
  fn.get(0);
  fn.i32(F64);
  fn.op("i32.mul", "i32.lt_u");
  fn.branchIf(0);
  fn.op("end");
  results.forEach((name, i) => {
    fn.get(pair);
    fn.get(sums[i]!);
    fn.load("v128.store", AT[name]);
  });
  next(pair, PAIR);
  fn.i32(COUNT * F64);
  fn.op("i32.lt_u");
  fn.branchIf(0);
  fn.op("end");
  return fn;
}

/** Loads two candidates, or two bounds, into a new local. */
function loadPair(fn: WasmFunction, name: Name, pair?: number): number {
  const local = fn.local("v128");
  if (pair === undefined) fn.i32(0);
  else fn.get(pair);
  fn.load("v128.load", AT[name]);
  fn.set(local);
  return local;
}

/** Pushes a number of the element twice. */
function pushElement({ fn, element }: Loops, name: Name): void {
  fn.get(element);
  fn.load("v128.load64_splat", AT[name]);
}

/** Rounds the top of the stack to a code: `clamped`. */
function pushCode(fn: WasmFunction, low: number, high: number): void {
  fn.f64x2(0.5);
  fn.op("f64x2.add", "f64x2.floor");
  fn.get(low);
  fn.op("f64x2.pmax");
  fn.get(high);
  fn.op("f64x2.pmin");
}

/** Adds the top of the stack to a sum. */
function addTo(fn: WasmFunction, sum: number): void {
  fn.get(sum);
  fn.op("f64x2.add");
  fn.set(sum);
}

function emitSums(): WasmFunction {
  return overPairs(
    ["codeSums", "squareSums", "productSums"],
    ({ fn, pair }) => {
      const inverse = loadPair(fn, "inverses", pair);
      const [low, high] = [loadPair(fn, "low"), loadPair(fn, "high")];
      const [code, weighted] = [fn.local("v128"), fn.local("v128")];
      return (loops) => {
        const [codes, squares, products] = loops.sums as [
          number,
          number,
          number,
        ];
        pushElement(loops, "scaled");
        fn.get(inverse);
        fn.op("f64x2.mul");
        pushCode(fn, low, high);
        fn.set(code);
        pushElement(loops, "weights");
        fn.get(code);
        fn.op("f64x2.mul");
        fn.set(weighted);
        fn.get(weighted);
        addTo(fn, codes);
        fn.get(weighted);
        fn.get(code);
        fn.op("f64x2.mul");
        addTo(fn, squares);
        pushElement(loops, "products");
        fn.get(code);
        fn.op("f64x2.mul");
        addTo(fn, products);
      };
    },
  );
}

function emitErrors(): WasmFunction {
  return overPairs(["errors"], ({ fn, pair }) => {
    const scale = loadPair(fn, "scales", pair);
    const minimum = loadPair(fn, "minimums", pair);
    const [low, high] = [loadPair(fn, "low"), loadPair(fn, "high")];
    const difference = fn.local("v128");
    return (loops) => {
      pushElement(loops, "values");
      fn.get(minimum);
      fn.op("f64x2.add");
      fn.get(scale);
      fn.op("f64x2.div");
      pushCode(fn, low, high);
      fn.get(scale);
      fn.op("f64x2.mul");
      fn.get(minimum);
      fn.op("f64x2.sub");
      pushElement(loops, "values");
      fn.op("f64x2.sub");
      fn.set(difference);
      pushElement(loops, "weights");
      fn.get(difference);
      fn.op("f64x2.mul");
      fn.get(difference);
      fn.op("f64x2.mul");
      addTo(fn, loops.sums[0]!);
    };
  });
}

/** Compiles the functions. */
export function fitSums(): FitSums {
  const module = new WasmModule();
  module.add(emitSums(), "sums");
  module.add(emitErrors(), "errors");
  const memory = new webAssembly.Memory({
    initial: 1,
    maximum: MEMORY_PAGES,
    shared: true,
  });
  const { exports } = new webAssembly.Instance(
    new webAssembly.Module(module.encode()),
    { env: { memory } },
  );
  const arrays = Object.fromEntries(
    Object.entries(LENGTHS).map(([name, length]) => [
      name,
      new Float64Array(memory.buffer, AT[name as Name], length),
    ]),
  ) as { readonly [name in Name]: Float64Array };
  const { sums, errors } = exports as unknown as FitSums;
  return { arrays, sums, errors };
}

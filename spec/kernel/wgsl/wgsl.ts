/** Prints a kernel tree as WGSL. No other file knows that language. */

import { endOf } from "../build.ts";
import { type LaneLoads, laneLoads } from "../lane_loads.ts";
import { OPERATOR_TEXTS } from "../operators.ts";
import { vectorWidths, wordLoads } from "../vectors.ts";
import { vectorName, wgslNames } from "./names.ts";
import {
  MATRIX_HEADER,
  printMatrixStmt,
  resultsArray,
  subgroupElements,
  subgroupTiles,
} from "./matrices.ts";
import {
  type BinaryOp,
  type Binding,
  type CallName,
  type Expr,
  isReadOnly,
  type Kernel,
  type MatrixStmt,
  type SharedArray,
  type Stmt,
} from "../tree.ts";
import { operands } from "../walk.ts";

/** Functions whose WGSL name differs from that in the tree. */
const RENAMED: { readonly [fn in CallName]?: string } = {
  rsqrt: "inverseSqrt",
  roundF16: "round_f16",
  dot4I8: "dot4_i8",
  dot4U8I8: "dot4_u8_i8",
};

/** WGSL's built-in dot product of bytes, on devices that support it. */
const DOT4_PACKED = "dot4I8Packed";

const DOT4_I8 = `fn dot4_i8(a: u32, b: u32) -> i32 {
  let left = vec4i(vec4u(a) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  let right = vec4i(vec4u(b) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  return dot(left, right);
}`;

const DOT4_U8_I8 = `fn dot4_u8_i8(a: u32, b: u32) -> i32 {
  let left = vec4i((vec4u(a) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));
  let right = vec4i(vec4u(b) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  return dot(left, right);
}`;

const LOOKUP16 =
  `fn lookup16(indices: u32, a: u32, b: u32, c: u32, d: u32) -> u32 {
  var table = vec4u(a, b, c, d);
  let at = (vec4u(indices) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(15u);
  let words = vec4u(table[at.x >> 2u], table[at.y >> 2u], table[at.z >> 2u], table[at.w >> 2u]);
  let bytes = (words >> ((at & vec4u(3u)) << vec4u(3u))) & vec4u(255u);
  return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}`;

/**
 * `quantizeToF16` may flush subnormal halves and leaves overflow undefined, so rounding (to nearest, ties to even,
 * overflow to infinity) is implemented on bits.
 */
const ROUND_F16 = `fn round_f16(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  let sign = bits & 0x80000000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {
    return x;
  }
  if (magnitude >= 0x477ff000u) {
    return bitcast<f32>(sign | special_bits.x);
  }
  if (magnitude < 0x38800000u) {
    return round(x * 16777216.0f) * 5.9604644775390625e-8f;
  }
  let rounded = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u)) & 0xffffe000u;
  return bitcast<f32>(sign | rounded);
}`;

/** Bits of infinity and of NaN, and none; a variable, because WGSL rejects both in constant expressions. */
const SPECIAL_BITS =
  "var<private> special_bits: vec3u = vec3u(0x7f800000u, 0x7fc00000u, 0u);";

const LARGEST_F32 = 3.4028234663852886e38;

/** The shortest decimal that parses to the same f32. */
function printF32(value: number): string {
  const x = Math.fround(value);
  if (Number.isNaN(x)) return "bitcast<f32>(special_bits.y)";
  if (!Number.isFinite(x)) {
    return x > 0
      ? "bitcast<f32>(special_bits.x)"
      : "bitcast<f32>(special_bits.x | 0x80000000u)";
  }
  let text = String(x);
  for (let digits = 1; digits <= 9; digits++) {
    const short = String(Number(x.toPrecision(digits)));
    // A decimal above the largest f32 would be rejected although it rounds to it.
    const legal = Math.abs(Number(short)) <= LARGEST_F32;
    if (legal && Math.fround(Number(short)) === x) {
      text = short;
      break;
    }
  }
  if (Object.is(x, -0)) text = "-0";
  return /[.e]/.test(text) ? `${text}f` : `${text}.0f`;
}

/** Whether WGSL evaluates an expression at compile time. */
function isConstant(e: Expr): boolean {
  if (e.op === "const") return true;
  const inner = e.op === "load" || e.op === "shared" ? [] : operands(e);
  return inner.length > 0 && inner.every(isConstant);
}

/**
 * A constant operand of an operation on constants, hidden from the compiler: WGSL rejects constant expressions that
 * overflow.
 */
function printHidden({ type, value }: Expr & { readonly op: "const" }): string {
  if (type === "bool") return `(special_bits.z ${value ? "==" : "!="} 0u)`;
  if (type === "u32") return `(${Number(value) >>> 0}u | special_bits.z)`;
  const bits = type === "i32"
    ? Number(value) >>> 0
    : new Uint32Array(Float32Array.of(Number(value)).buffer)[0];
  return `bitcast<${type}>(${bits}u | special_bits.z)`;
}

/** The right operand of an integer operation: WGSL rejects some constants there. */
function constantRight(fn: BinaryOp, b: Expr): Expr {
  if (b.op !== "const" || b.type === "f32") return b;
  if (fn === "shl" || fn === "shr") {
    return { ...b, value: Number(b.value) & 31 };
  }
  const divides = fn === "div" || fn === "rem";
  return divides && Number(b.value) === 0 ? { ...b, value: 1 } : b;
}

const NO_LANES: ReturnType<typeof laneLoads> = new Map();

/** Device features for a kernel's text. */
export interface WgslOptions {
  /** Subgroup size, if invocations load uniform values for each other. Default: they do not. */
  readonly subgroup?: number | undefined;
  /** Whether the device supports WGSL's `packed_4x8_integer_dot_product`. Default: false. */
  readonly packedDot?: boolean;
  /**
   * Subgroup size, if the device supports subgroup matrices of 16 x 16 with f16 operands and f32 results. Default: kernels
   * do not use them.
   */
  readonly matrices?: number | undefined;
}

/** The WGSL of a kernel. Deterministic. */
export function printWgsl(
  kernel: Kernel,
  { subgroup, packedDot = false, matrices }: WgslOptions = {},
): string {
  const tile = matrices === undefined
    ? undefined
    : subgroupTiles(kernel, matrices);
  const lanes = subgroup && !tile ? laneLoads(kernel, subgroup) : NO_LANES;
  const names = wgslNames(kernel, [...lanes.values()].flat());
  const widths = vectorWidths(kernel);
  const elementOf = ({ name, type }: Binding) => {
    const width = widths.get(name);
    return width === undefined ? type : `vec${width}<${type}>`;
  };

  const lengths = new Map(kernel.shared.map((a) => [a.name, a.length]));

  function inner(e: Expr): string {
    const text = print(e);
    return e.op === "binary" && OPERATOR_TEXTS[e.fn] ? `(${text})` : text;
  }

  /** The first operand of `of`; in a constant expression, it is a variable. */
  function first(operand: Expr, of: Expr): string {
    return operand.op === "const" && isConstant(of)
      ? printHidden(operand)
      : inner(operand);
  }

  /** The first operand of `of` as the argument of a function. */
  function argument(operand: Expr, of: Expr): string {
    return operand.op === "const" ? first(operand, of) : print(operand);
  }

  /** An argument followed by others: WGSL parses `a < b, c >` as template parameters. */
  function early(e: Expr): string {
    return e.op === "binary" && e.fn === "lt" ? `(${print(e)})` : print(e);
  }

  /** An element of an array of known length, which constant indices must not exceed. */
  function element(array: string, index: Expr): string {
    const beyond = index.op === "const" &&
      Number(index.value) >= lengths.get(array)!;
    return `${names.global(array)}[${
      beyond ? printHidden(index) : print(index)
    }]`;
  }

  function print(e: Expr): string {
    switch (e.op) {
      case "const":
        if (e.type === "bool") return String(e.value);
        if (e.type === "f32") return printF32(Number(e.value));
        if (e.type === "u32") return `${Number(e.value) >>> 0}u`;
        return Number(e.value) === -0x80000000
          ? "i32(-2147483648)"
          : `${e.value}i`;
      case "local":
        return names.local(e.name);
      case "id":
        return e.name === "local" ? "lane" : e.name;
      case "load": {
        const words = wordLoads(e);
        if (words) return `(${print(words)})`;
        return `${names.global(e.binding)}[${print(e.index)}]`;
      }
      case "shared":
        return element(e.array, e.index);
      case "unary":
        return `${e.fn === "neg" ? "-" : "!"}${unaryOperand(e)}`;
      case "binary": {
        const operator = OPERATOR_TEXTS[e.fn];
        return operator
          ? `${first(e.a, e)} ${operator} ${inner(constantRight(e.fn, e.b))}`
          : `${e.fn}(${argument(e.a, e)}, ${print(e.b)})`;
      }
      case "call": {
        const [a, ...others] = e.args;
        if (e.fn === "unpackF16Lo" || e.fn === "unpackF16Hi") {
          const half = e.fn === "unpackF16Lo" ? "x" : "y";
          return `unpack2x16float(${argument(a!, e)}).${half}`;
        }
        const args = [argument(a!, e), ...others.map(print)];
        const name = packedDot && e.fn === "dot4I8"
          ? DOT4_PACKED
          : RENAMED[e.fn] ?? e.fn;
        return `${name}(${args.join(", ")})`;
      }
      case "select":
        return `select(${early(e.b)}, ${early(e.a)}, ${
          argument(e.condition, e)
        })`;
      case "convert":
        return `${e.type}(${argument(e.a, e)})`;
      case "bitcast":
        return `bitcast<${e.type}>(${argument(e.a, e)})`;
    }
  }

  /** `--x` would be parsed as a decrement, and a negative constant starts with a minus. */
  function unaryOperand(e: Expr & { readonly op: "unary" }): string {
    const text = first(e.a, e);
    return e.a.op === "unary" || text.startsWith("-") ? `(${text})` : text;
  }

  function block(statements: readonly MatrixStmt[], indent: string): string[] {
    return statements.flatMap((s) => statement(s, indent));
  }

  /** Variables of lane loads, before their loop. */
  function laneVariables({ variables }: LaneLoads): string[] {
    return variables.map(({ name, of: [first, ...others] }) => {
      const chosen = others.reduce(
        (text, other, i) =>
          `select(${text}, ${names.local(other)}, subgroup_lane == ${i + 1}u)`,
        names.local(first!),
      );
      return `let ${names.local(name)} = ${chosen};`;
    });
  }

  /** The lane load of a statement, if any. */
  function fromLane(s: Stmt, all: readonly LaneLoads[]): string[] | undefined {
    for (const { lets, name, value } of all) {
      const lane = lets.findIndex((one) => one === s);
      if (lane < 0) continue;
      const broadcast = `subgroupBroadcast(${names.local(name)}, ${lane}u)`;
      return [
        ...lane === 0 ? [`let ${names.local(name)} = ${print(value)};`] : [],
        `let ${names.local(lets[lane]!.name)} = ${broadcast};`,
      ];
    }
    return undefined;
  }

  /** A value as f16, which rounds it. */
  function half(e: Expr): string {
    return `f16(${
      print(e.op === "call" && e.fn === "roundF16" ? e.args[0]! : e)
    })`;
  }

  function statement(s: MatrixStmt, indent: string): string[] {
    const line = (text: string) => [indent + text];
    switch (s.op) {
      case "let":
      case "var":
        return line(`${s.op} ${names.local(s.name)} = ${print(s.value)};`);
      case "loads": {
        const all = names.local(vectorName(s));
        const from = `${names.global(s.binding)}[${print(s.index)}]`;
        return [
          ...line(`let ${all} = ${from};`),
          ...s.names.flatMap((name, i) =>
            line(`let ${names.local(name)} = ${all}.${"xyzw"[i]};`)
          ),
        ];
      }
      case "set":
        return line(`${names.local(s.name)} = ${print(s.value)};`);
      case "store":
        return line(
          `${names.global(s.binding)}[${print(s.index)}] = ${print(s.value)};`,
        );
      case "sharedStore":
        return line(
          `${element(s.array, s.index)} = ${
            tile?.operands.has(s.array) ? half(s.value) : print(s.value)
          };`,
        );
      case "for": {
        const name = names.local(s.name);
        const head = `var ${name} = ${print(s.from)}; ` +
          `${name} < ${inner(endOf(s))}; ${name} += ${print(s.step)}`;
        const loads = lanes.get(s as Stmt);
        if (!loads) {
          return [
            `${indent}for (${head}) {`,
            ...block(s.body, indent + "  "),
            `${indent}}`,
          ];
        }
        // In a separate block, because other loops may have variables of the same names.
        return [
          `${indent}{`,
          ...loads.flatMap(laneVariables).map((text) => `${indent}  ${text}`),
          `${indent}  for (${head}) {`,
          ...s.body.flatMap((one) =>
            fromLane(one as Stmt, loads)?.map((text) =>
              `${indent}    ${text}`
            ) ??
              statement(one, indent + "    ")
          ),
          `${indent}  }`,
          `${indent}}`,
        ];
      }
      case "if":
        return [
          `${indent}if (${print(s.condition)}) {`,
          ...block(s.then, indent + "  "),
          ...(s.else
            ? [`${indent}} else {`, ...block(s.else, indent + "  ")]
            : []),
          `${indent}}`,
        ];
      case "barrier":
        return line("workgroupBarrier();");
      case "matrices":
      case "multiply":
      case "storeMatrix":
      case "results":
        return printMatrixStmt(s, tile!, { block, array: names.global })
          .map((text) => indent + text);
    }
  }

  const body = tile
    ? [...subgroupElements(tile), ...block(kernel.matrixForm!, "")]
      .map((text) => `  ${text}`)
    : block(kernel.body, "  ");
  const text = body.join("\n");
  const helpers = [
    ...(/\b(special_bits|round_f16)\b/.test(text) ? [SPECIAL_BITS, ""] : []),
    ...(/\bround_f16\b/.test(text) ? [ROUND_F16, ""] : []),
    ...(/\bdot4_i8\b/.test(text) ? [DOT4_I8, ""] : []),
    ...(/\bdot4_u8_i8\b/.test(text) ? [DOT4_U8_I8, ""] : []),
    ...(/\blookup16\b/.test(text) ? [LOOKUP16, ""] : []),
  ];
  const broadcasts = lanes.size > 0;
  const typeOf = ({ name, type }: SharedArray) =>
    tile?.operands.has(name) ? "f16" : type;
  return [
    ...tile ? MATRIX_HEADER : [],
    ...text.includes(DOT4_PACKED)
      ? ["requires packed_4x8_integer_dot_product;", ""]
      : [],
    // The rules of the tree determine which barriers all invocations reach.
    ...broadcasts
      ? ["enable subgroups;", "diagnostic(off, subgroup_uniformity);", ""]
      : [],
    ...kernel.bindings.map((b, i) =>
      `@group(0) @binding(${i}) var<storage, ${
        isReadOnly(b) ? "read" : "read_write"
      }> ${names.global(b.name)}: array<${elementOf(b)}>;`
    ),
    ...kernel.shared.map((a) =>
      `var<workgroup> ${names.global(a.name)}: array<${
        typeOf(a)
      }, ${a.length}>;`
    ),
    ...tile ? resultsArray(tile) : [],
    "",
    ...helpers,
    `@compute @workgroup_size(${kernel.workgroupSize})`,
    `fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32${
      broadcasts || tile
        ? ", @builtin(subgroup_invocation_id) subgroup_lane: u32"
        : ""
    }) {`,
    ...body,
    "}",
    "",
  ].join("\n");
}

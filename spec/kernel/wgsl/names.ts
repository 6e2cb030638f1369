/** WGSL identifiers for the names of a kernel: legal, not reserved, and distinct. */

import type { LaneLoads } from "../lane_loads.ts";
import { FUNCTIONS } from "../semantics.ts";
import type { Kernel, LoadsStmt, Stmt } from "../tree.ts";
import { walkStatements } from "../walk.ts";

/** WGSL keywords and reserved words, predeclared types and functions used by the printer, and its own names. */
const TAKEN = new Set([
  ...Object.keys(FUNCTIONS),
  ...`alias break case const const_assert continue continuing default diagnostic discard else enable false fn for if let
  loop override requires return struct switch true var while
  NULL Self abstract active alignas alignof as asm asm_fragment async attribute auto await become binding_array cast
  catch class co_await co_return co_yield coherent column_major common compile compile_fragment concept const_cast
  consteval constexpr constinit crate debugger decltype delete demote demote_to_helper do dynamic_cast enum explicit
  export extends extern external fallthrough filter final finally friend from fxgroup get goto groupshared highp impl
  implements import inline instanceof interface layout lowp macro macro_rules match mediump meta mod module move mut
  mutable namespace new nil noexcept noinline nointerpolation non_coherent noncoherent noperspective null nullptr of
  operator package packoffset partition pass patch pixelfragment precise precision premerge priv protected pub public
  readonly ref regardless register reinterpret_cast require resource restrict self set shared sizeof smooth snorm
  static static_assert static_cast std subroutine super target template this thread_local throw trait try type typedef
  typeid typename typeof union unless unorm unsafe unsized use using varying virtual volatile wgsl where with writeonly
  yield
  array atomic bool f16 f32 i32 u32 mat2x2f mat3x3f mat4x4f ptr sampler vec2 vec3 vec4 vec2f vec3f vec4f vec2i vec3i
  vec4i vec2u vec3u vec4u read write read_write storage uniform private workgroup function
  bitcast inverseSqrt max min quantizeToF16 select unpack2x16float workgroupBarrier
  main group lane special_bits round_f16 subgroup_lane subgroupBroadcast subgroupAny workgroupUniformLoad`
    .split(
      /\s+/,
    ),
]);

/** Printed names of a kernel's bindings and workgroup arrays, and of its locals. */
export interface WgslNames {
  global(name: string): string;
  local(name: string): string;
}

/** The name of a vector load before its components are named. */
export function vectorName({ names }: LoadsStmt): string {
  return `${names[0]}_vector`;
}

function localsOf(statements: readonly Stmt[]): Set<string> {
  const locals = new Set<string>();
  walkStatements(statements, (s) => {
    if (s.op === "let" || s.op === "var" || s.op === "for") locals.add(s.name);
    if (s.op === "loads") {
      [vectorName(s), ...s.names].forEach((n) => locals.add(n));
    }
  });
  return locals;
}

/** Chooses the printed names of a kernel, in the order of its declarations, and of the locals of lane loads. */
export function wgslNames(
  kernel: Kernel,
  lanes: readonly LaneLoads[],
): WgslNames {
  const used = new Set(TAKEN);
  const choose = (name: string): string => {
    let text = name.replace(/[^A-Za-z0-9_]/g, "_");
    if (/^([0-9]|__|_$|$|subgroup_)/.test(text)) text = `v${text}`;
    while (used.has(text)) text += "_";
    used.add(text);
    return text;
  };
  const globals = new Map<string, string>();
  for (const { name } of [...kernel.bindings, ...kernel.shared]) {
    globals.set(name, choose(name));
  }
  const locals = new Map<string, string>();
  const declared = localsOf(kernel.body);
  const added = lanes.flatMap(({ name, variables }) => [
    name,
    ...variables.map((one) => one.name),
  ]);
  for (const name of new Set([...declared, ...added])) {
    locals.set(name, choose(name));
  }
  const find = (map: Map<string, string>, name: string): string => {
    const text = map.get(name);
    if (text === undefined) {
      throw new RangeError(
        `Cannot print kernel '${kernel.name}': '${name}' is not declared. Declare it as a binding, shared array or local`,
      );
    }
    return text;
  };
  return {
    global: (name) => find(globals, name),
    // No name of a tree contains a space.
    local: (name) =>
      name.startsWith("subgroup ")
        ? name.replaceAll(" ", "_")
        : find(locals, name),
  };
}

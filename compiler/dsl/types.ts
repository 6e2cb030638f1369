/**
 * Types of tensors: axis names as one string, and the checks of every op. Each failing check is a sentence, equal to
 * the one that `graph/messages.ts` builds at run time. Three rules keep messages readable: a check is a conditional
 * with the bare type parameter in one branch, every checking position is `NoInfer`, and templates contain no union.
 */

/** `"token" | "embed"` from `"token embed"`. */
export type Axis<S extends string> = S extends `${infer H} ${infer R}`
  ? H | Axis<R>
  : S extends "" ? never
  : S;

/** Concatenation of two lists of axes. */
export type Cat<A extends string, B extends string> = A extends "" ? B
  : B extends "" ? A
  : `${A} ${B}`;

/** `S` without the axes `X`, in order. */
export type Without<
  S extends string,
  X extends string,
  Acc extends string = "",
> = S extends `${infer H} ${infer R}`
  ? Without<R, X, H extends X ? Acc : Cat<Acc, H>>
  : S extends X ? Acc
  : Cat<Acc, S>;

/** `S` with the axis `F` replaced by `T`, which may be several axes. */
export type Renamed<
  S extends string,
  F extends string,
  T extends string,
  Acc extends string = "",
> = S extends `${infer H} ${infer R}`
  ? Renamed<R, F, T, Cat<Acc, H extends F ? T : H>>
  : Cat<Acc, S extends F ? T : S>;

/** The first axis. */
export type First<S extends string> = S extends `${infer H} ${string}` ? H : S;

/** The second of three axes. */
export type Second<S extends string> = S extends
  `${string} ${infer H} ${string}` ? H : string;

/** The first repeated axis, or never. */
export type Repeated<S extends string> = S extends `${infer H} ${infer R}`
  ? H extends Axis<R> ? H : Repeated<R>
  : never;

/** Dtypes of functions and sums. */
export type Float = "f32" | "f16";

// --- declarations

type LastWord<S extends string> = S extends `${string} ${infer R}` ? LastWord<R>
  : S;
type AllButLast<S extends string, Acc extends string = ""> = S extends
  `${infer H} ${infer R}` ? AllButLast<R, Cat<Acc, H>> : Acc;

/** `S` if the model has its axes; completions of the last word if only that one is unknown; else the error. */
export type Known<Names extends string, S extends string> =
  [Without<S, Names>] extends [""] ? [Repeated<S>] extends [never] ? S
    : `Cannot declare '${S}': axis '${Repeated<S>}' is repeated`
    : string extends S ? S
    : [Without<S, Names>] extends [LastWord<S>]
      ? AllButLast<S> extends "" ? Names
      : `${AllButLast<S>} ${Exclude<Names, Axis<AllButLast<S>>>}`
    : `Cannot declare '${S}': the model has no axis '${Without<S, Names>}'`;

/**
 * A parameter's name; `X` is the axis of an `{axis}` in it. Only the axis is inferred: a type parameter for the entire
 * name would create a new signature for every parameter.
 */
export type ParamName<X extends string> =
  | (string & Record<never, never>)
  | `${string}{${X}}${string}`;

/** `Known`, with the stacked axis `X` first. */
export type KnownParam<
  Names extends string,
  S extends string,
  X extends string,
> = [X] extends [never] ? Known<Names, S>
  : S extends X | `${X} ${string}` ? Known<Names, S>
  : string extends S | X ? S
  : `Cannot stack '${S}' over '${X}': it is not the first axis`;

/** `Ok` if a tensor with the axes `A` has no axis local to a block. */
export type CanReturn<A extends string, Local, Ok> = string extends A ? Ok
  : [Axis<A> & Local] extends [never] ? Ok
  : `Cannot return '${A}' from a block: axis '${Without<
    A,
    Exclude<Axis<A>, Local>
  >}' is local to it`;

// --- elementwise

/** Axes of an elementwise result: those of the operand with all axes. */
export type Broadcast<A extends string, B extends string> = [B] extends [never]
  ? A
  : Axis<B> extends Axis<A> ? A
  : Axis<A> extends Axis<B> ? B
  : never;

/** `Ok` if one operand has all axes of the other. */
export type CanBroadcast<A extends string, B extends string, Ok> =
  [Axis<B>] extends [Axis<A>] ? Ok
    : [Axis<A>] extends [Axis<B>] ? Ok
    : `Cannot broadcast '${B}' against '${A}': left has no '${Without<
      B,
      Axis<A>
    >}', right has no '${Without<A, Axis<B>>}'`;

// --- contractions

/** Axes of a contraction. */
export type Dot<A extends string, B extends string, K extends string> = Cat<
  Without<A, Axis<K>>,
  Without<B, Axis<K> | Axis<A>>
>;

/** `K` if both operands have its axes; else the axes that both have. */
export type CanDot<A extends string, B extends string, K extends string> =
  [Axis<K>] extends [Axis<A> & Axis<B>] ? K
    : [Axis<A> & Axis<B>] extends [never]
      ? `Cannot dot '${A}' with '${B}': they share no axis`
    : Axis<A> & Axis<B>;

/** Axes after `->`. */
export type EinsumOut<S extends string> = S extends `${string} -> ${infer O}`
  ? O
  : never;

/** `S` if it matches the operands. */
export type CanEinsum<S extends string, A extends string, B extends string> =
  string extends S ? S
    : S extends `${infer I} -> ${infer O}`
      ? I extends `${A}, ${B}`
        ? [Without<O, Axis<A> | Axis<B>>] extends [""] ? S
        : `Cannot einsum '${S}': output axis '${Without<
          O,
          Axis<A> | Axis<B>
        >}' is on neither operand`
      : `Cannot einsum '${S}': the operands are '${A}, ${B}'`
    : `Cannot einsum '${S}': expected '${A}, ${B} -> …'`;

// --- reductions

/** `Ok` if the gain of a norm has only the axis `K`. */
export type CanGain<
  N extends { readonly op: string; readonly gain: string },
  A extends string,
  K extends string,
  Ok,
> = [N["gain"]] extends [K] ? Ok
  : string extends N["gain"] ? Ok
  : `Cannot ${N["op"]} '${A}' over '${K}': expected gain '${K}', got '${N[
    "gain"
  ]}'`;

// --- shapes

/** `T` if `A` has no such axis yet. */
export type CanName<A extends string, T extends string, Op extends string> =
  [Axis<A> & Axis<T>] extends [never] ? T
    : string extends A ? T
    : `Cannot ${Op} '${A}' to '${T}': it has an axis '${Without<
      T,
      Exclude<Axis<T>, Axis<A>>
    >}' already`;

type Trim<S extends string> = S extends ` ${infer R}` ? Trim<R>
  : S extends `${infer R} ` ? Trim<R>
  : S;

/** `A` with the adjacent axes `F` as one axis `T`. */
export type Merged<A extends string, F extends string, T extends string> =
  string extends A ? string
    : ` ${A} ` extends `${infer L} ${F} ${infer R}`
      ? Cat<Trim<L>, Cat<T, Trim<R>>>
    : never;

/** `F` if these axes are adjacent in `A` in this order. */
export type CanMerge<A extends string, F extends string> = string extends A ? F
  : ` ${A} ` extends `${string} ${F} ${string}` ? F
  : `Cannot merge '${F}' of '${A}': they are not side by side in this order`;

/** `T` if it has exactly the axes of `A`. */
export type CanTranspose<A extends string, T extends string> = string extends
  A | T ? T
  : [Axis<A>] extends [Axis<T>]
    ? [Axis<T>] extends [Axis<A>] ? [Repeated<T>] extends [never] ? T
      : `Cannot transpose '${A}' to '${T}': the axes are not the same`
    : `Cannot transpose '${A}' to '${T}': the axes are not the same`
  : `Cannot transpose '${A}' to '${T}': the axes are not the same`;

/** `Ok` if `B` equals `A` except for the name of the axis `F`. */
export type CanConcat<
  A extends string,
  B extends string,
  F extends string,
  Ok,
> = string extends A | B ? Ok
  : A extends B ? Ok
  : Renamed<B, Without<B, Axis<A>>, F> extends A ? Ok
  : `Cannot concat '${A}' with '${B}': they differ in more than '${F}'`;

// --- positions

/** `Ok` if the query `Q` has three axes. */
export type CanQuery<Q extends string, Ok> = string extends Q ? Ok
  : Q extends `${string} ${string} ${infer X}`
    ? X extends `${string} ${string}`
      ? `Cannot attend with query '${Q}': expected three axes, 'token head dim'`
    : Ok
  : `Cannot attend with query '${Q}': expected three axes, 'token head dim'`;

/** `Ok` if the key or value `K` matches the query `Q`. */
export type CanKey<Q extends string, K extends string, Ok> = string extends
  K | Q ? Ok
  : Q extends `${infer T} ${string} ${infer X}`
    ? K extends `${T} ${infer G} ${X}`
      ? G extends `${string} ${string}`
        ? `Cannot attend with key '${K}': expected '${T} kvHead ${X}', to go with query '${Q}'`
      : Ok
    : `Cannot attend with key '${K}': expected '${T} kvHead ${X}', to go with query '${Q}'`
  : Ok;

/** `Ok` if the value `V` matches the key `K` in all but the last axis. */
export type CanValue<K extends string, V extends string, Ok> = string extends
  K | V ? Ok
  : K extends `${infer T} ${infer G} ${string}`
    ? V extends `${T} ${G} ${infer Y}`
      ? Y extends `${string} ${string}`
        ? `Cannot attend with value '${V}': expected '${T} ${G} valueDim', to go with key '${K}'`
      : Ok
    : `Cannot attend with value '${V}': expected '${T} ${G} valueDim', to go with key '${K}'`
  : Ok;

/** The query `Q` with the last axis of the value `V`. */
export type Valued<Q extends string, V extends string> = string extends Q | V
  ? string
  : Q extends `${infer T} ${infer H} ${string}`
    ? V extends `${string} ${string} ${infer Y}` ? `${T} ${H} ${Y}` : Q
  : Q;

/** `Ok` if the key `K`, shared by all heads, matches the query `Q`. */
export type CanSharedKey<Q extends string, K extends string, Ok> =
  string extends K | Q ? Ok
    : Q extends `${infer T} ${string} ${infer X}` ? K extends `${T} ${X}` ? Ok
      : `Cannot attend with key '${K}': expected '${T} ${X}', to go with query '${Q}'`
    : Ok;

/** `Ok` if the cache `S` matches the key `K`. */
export type CanCache<K extends string, S extends string, Ok> = string extends
  K | S ? Ok
  : K extends `${string} ${infer GX}`
    ? S extends `${infer SC} ${GX}`
      ? SC extends `${string} ${infer C}`
        ? C extends `${string} ${string}`
          ? `Cannot attend with cache '${S}': expected 'sequence context ${GX}', to hold '${K}'`
        : Ok
      : `Cannot attend with cache '${S}': expected 'sequence context ${GX}', to hold '${K}'`
    : `Cannot attend with cache '${S}': expected 'sequence context ${GX}', to hold '${K}'`
  : Ok;

/** `Ok` if `S` has the axes of a cache of keys per head. */
export type CanCached<S extends string, Ok> = string extends S ? Ok
  : S extends `${string} ${string} ${string} ${infer X}`
    ? X extends `${string} ${string}`
      ? `Cannot attend with cache '${S}': expected four axes, 'sequence context kvHead dim'`
    : Ok
  : `Cannot attend with cache '${S}': expected four axes, 'sequence context kvHead dim'`;

/** `Ok` if `X` has the axes of the positions `P`. */
export type CanPosition<X extends string, P extends string, Ok> =
  [Axis<P>] extends [Axis<X>] ? Ok
    : `Cannot rope '${X}' by position '${P}': it has no '${Without<
      P,
      Axis<X>
    >}'`;

// --- routing

/** `Ok` if `A` has the routed axes `T`. */
export type CanDispatch<A extends string, T extends string, Ok> =
  [Axis<T>] extends [Axis<A>] ? Ok
    : `Cannot dispatch '${A}': the routing is over '${T}', which it does not have`;

/** `Ok` if `A` starts with the axes `E` and `S`. */
export type CanCombine<
  A extends string,
  E extends string,
  S extends string,
  Ok,
> = A extends `${E} ${S} ${string}` | `${E} ${S}` ? Ok
  : string extends A ? Ok
  : `Cannot combine '${A}': expected '${E} ${S} …', the axes its routing dispatched to`;

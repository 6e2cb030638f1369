/** Model of contenders for one lock over in-memory files. A schedule orders their file system calls and kills. */

import { takeLock } from "../../cli/lock_file.ts";
import type { Locking } from "../../cli/lock_file.ts";
import type { Owner, Processes } from "../../cli/lock_owner.ts";

/** Initial files and the process ids that own them. */
export const BEFORE = {
  "no lock": {},
  "a lock of a killed process": { lock: 7 },
  "a lock and a claim on it, both of killed processes": {
    lock: 7,
    [`lock.${idOf(7, 0)}`]: 8,
  },
} as const satisfies {
  readonly [name: string]: { readonly [file: string]: number };
};

export type Before = keyof typeof BEFORE;

/** Contenders, initial files and file system of an exploration. */
export interface LockCase {
  readonly contenders: number;
  readonly before: Before;
  /** Whether the file system has hard links. */
  readonly links: boolean;
}

/** `n`: contender n executes its next call. `~n`: contender n is killed. */
export type Choice = number;

interface Contender {
  readonly pid: number;
  /** Results of its calls. Contenders with equal histories are in equal states. */
  history: string;
  /** Its next call. */
  pending: (() => void) | undefined;
  state: "takes" | "holds" | "is refused" | "has released" | "is killed";
}

const FIRST_PID = 101;

/** Created once: recording stacks is slow. */
const ERRORS = {
  ENOENT: errorOf("ENOENT"),
  EEXIST: errorOf("EEXIST"),
  EPERM: errorOf("EPERM"),
};

function errorOf(code: string): Error {
  return Object.assign(new Error(code), { code });
}

function idOf(pid: number, count: number): string {
  return `00000000-0000-0000-${String(count).padStart(4, "0")}-${
    String(pid).padStart(12, "0")
  }`;
}

function ownerOf(pid: number, count: number): Owner {
  const where = { namespace: "n", machine: "m", boot: "b" };
  return {
    id: idOf(pid, count),
    pid,
    host: "h",
    since: "s",
    start: "0",
    ...where,
  };
}

/** State of one schedule. */
export class LockModel {
  readonly files = new Map<string, string>();
  readonly contenders: Contender[] = [];
  readonly #case: LockCase;
  readonly #ended = new Set<number>([7, 8]);
  /** The first violated invariant. */
  problem: string | undefined;

  constructor(of: LockCase) {
    this.#case = of;
    for (const [file, pid] of Object.entries(BEFORE[of.before])) {
      this.files.set(file, `${JSON.stringify(ownerOf(pid, 0))}\n`);
    }
  }

  /** Starts contenders. */
  async begin(count = this.#case.contenders): Promise<void> {
    for (let n = 0; n < count; n++) {
      const contender: Contender = {
        pid: FIRST_PID + this.contenders.length,
        history: "",
        pending: undefined,
        state: "takes",
      };
      this.contenders.push(contender);
      void this.#contend(contender).catch((error) => this.#fail(error));
      await this.#settle(contender);
    }
  }

  /**
   * Returns the possible choices, with kills only if `kills`. Contenders are interchangeable, so they start in order.
   */
  choices(kills: boolean): Choice[] {
    const first = this.contenders.findIndex(({ history }) => history === "");
    const alive = [...this.contenders.keys()].filter((n) =>
      this.contenders[n]!.pending &&
      (n === first || this.contenders[n]!.history !== "")
    );
    return kills ? [...alive, ...alive.map((n) => ~n)] : alive;
  }

  /** Executes a choice and checks the invariants. */
  async take(choice: Choice): Promise<void> {
    const contender = this.contenders[choice < 0 ? ~choice : choice]!;
    const { pending } = contender;
    contender.pending = undefined;
    if (choice < 0) {
      contender.state = "is killed";
      contender.history = "killed";
      this.#ended.add(contender.pid);
    } else {
      pending!();
      await this.#settle(contender);
    }
    this.#check();
  }

  /** Key of the state. Equal states have equal futures. */
  get key(): string {
    const files = [...this.files].sort().map((entry) => entry.join("="));
    const contenders = this.contenders.map(({ state, history, pending }) =>
      pending ? `${state}:${history}` : state
    );
    return `${files.join()}|${contenders.join("|")}`;
  }

  /**
   * Checks the final state: a contender acquired the lock unless one was killed, another one still can, and only killed
   * ones leave files.
   */
  async end(): Promise<void> {
    const killed = this.contenders.some(({ state }) => state === "is killed");
    if (!killed && !this.contenders.some((c) => c.state === "has released")) {
      this.#fail("no contender acquired the lock");
    }
    await this.begin(1);
    const last = this.contenders.at(-1)!;
    while (last.pending) await this.take(this.contenders.length - 1);
    const torn = [...this.files.values()].some((text) => !text.endsWith("\n"));
    if (last.state !== "has released" && !torn) {
      this.#fail("the lock can no longer be acquired");
    }
    for (const [file, text] of this.files) {
      const owner = text.endsWith("\n")
        ? (JSON.parse(text) as Owner).pid
        : undefined;
      if (owner === undefined ? killed : this.#ended.has(owner)) continue;
      this.#fail(`'${file}' is left`);
    }
    if (!killed && this.files.size > 0) {
      this.#fail(`${[...this.files.keys()].join()} are left`);
    }
  }

  #fail(reason: unknown): void {
    this.problem ??= reason instanceof Error
      ? reason.stack ?? reason.message
      : String(reason);
  }

  #check(): void {
    const holders = this.contenders.filter(({ state }) => state === "holds");
    if (holders.length > 1) {
      this.#fail(`${holders.map(({ pid }) => pid).join(" and ")} own the lock`);
    }
    for (const { pid } of holders) {
      if (this.files.get("lock")?.includes(`"pid":${pid},`)) continue;
      this.#fail(`${pid} owns the lock, which is '${this.files.get("lock")}'`);
    }
  }

  async #contend(contender: Contender): Promise<void> {
    const lock = await takeLock("lock", this.#lockingOf(contender));
    if (!("release" in lock)) {
      contender.state = "is refused";
      return;
    }
    contender.state = "holds";
    await this.#call(contender, () => {});
    contender.state = "takes";
    await lock.release();
    contender.state = "has released";
  }

  /** Waits until a contender has a pending call or ends. */
  async #settle(contender: Contender): Promise<void> {
    for (let ticks = 0; ticks < 1000; ticks++) {
      if (contender.pending || this.problem !== undefined) return;
      if (!["takes", "holds"].includes(contender.state)) return;
      await undefined;
    }
    this.#fail("a contender neither calls nor ends");
  }

  #call<T>(contender: Contender, call: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      contender.pending = () => {
        try {
          const result = call();
          contender.history += `${String(result)};`;
          resolve(result);
        } catch (error) {
          contender.history += `${String(error)};`;
          reject(error);
        }
      };
    });
  }

  #lockingOf(contender: Contender): Locking {
    const { files } = this;
    const { links } = this.#case;
    const call = <T>(of: () => T): Promise<T> => this.#call(contender, of);
    // Calls on files of one contender are invisible to others, so they are not scheduled.
    const callOn = <T>(path: string, of: () => T): Promise<T> =>
      path.includes(`.${contender.pid}.`)
        ? new Promise((resolve) => resolve(of()))
        : call(of);
    const fail = (code: keyof typeof ERRORS): never => {
      throw ERRORS[code];
    };
    const read = (path: string): string => files.get(path) ?? fail("ENOENT");
    const make = (path: string, text: string): void => {
      if (files.has(path)) fail("EEXIST");
      files.set(path, text);
    };
    const disk = {
      writeFile: async (path: string, text: string) => {
        // A file is visible before its text.
        await callOn(path, () => make(path, ""));
        await callOn(path, () => void files.set(path, text));
      },
      link: (from: string, to: string) =>
        call(() => links ? make(to, read(from)) : fail("EPERM")),
      readFile: (path: string) => call(() => read(path)),
      rename: (from: string, to: string) =>
        call(() => {
          files.set(to, read(from));
          files.delete(from);
        }),
      rm: (path: string) => callOn(path, () => void files.delete(path)),
    };
    let count = 0;
    const processes: Processes = {
      owner: () => Promise.resolve(ownerOf(contender.pid, ++count)),
      stateOf: ({ pid }) =>
        this.#ended.has(pid)
          ? Promise.resolve("ended")
          : call(() => this.#ended.has(pid) ? "ended" : "runs"),
    };
    return { disk: disk as unknown as Locking["disk"], processes };
  }
}

/** Results of an exploration. */
export interface Explored {
  readonly states: number;
  readonly ends: number;
  /** Schedule of the first violation. Undefined: none. */
  readonly found: {
    readonly schedule: readonly Choice[];
    readonly problem: string;
  } | undefined;
}

/** Explores all interleavings of calls with up to `kills` kills. Continues from equal states once. */
export async function exploreLocks(
  of: LockCase,
  kills: number,
): Promise<Explored> {
  const seen = new Set<string>();
  const pending: (readonly Choice[])[] = [[]];
  let ends = 0;
  for (let start = pending.pop(); start; start = pending.pop()) {
    const model = new LockModel(of);
    await model.begin();
    const schedule: Choice[] = [];
    for (const choice of start) {
      await model.take(choice);
      schedule.push(choice);
    }
    while (model.problem === undefined && !seen.has(model.key)) {
      seen.add(model.key);
      const killed = schedule.filter((choice) => choice < 0).length;
      const [next, ...others] = model.choices(killed < kills);
      for (const other of others) pending.push([...schedule, other]);
      if (next === undefined) {
        ends++;
        await model.end();
        break;
      }
      await model.take(next);
      schedule.push(next);
    }
    const { problem } = model;
    if (problem !== undefined) {
      return { states: seen.size, ends, found: { schedule, problem } };
    }
  }
  return { states: seen.size, ends, found: undefined };
}

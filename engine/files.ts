/** Files: the interface that the caller of the engine implements. */

/** A file open for reading. */
export interface OpenFile {
  readonly size: number;
  /** Descriptor of an open system file, if it is one. */
  readonly descriptor?: number;
  /** Reads exactly `length` bytes from `offset`. Errors name the file. */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** An acquired lock; or its owner, and whether the owner may have exited without this machine detecting it. */
export type Lock =
  | { readonly release: () => Promise<void> }
  | { readonly owner: string; readonly gone: boolean };

/** File access. Errors name the path: a DataError if the user can fix it, a MachineError if the machine is at fault. */
export interface FileSystem {
  /** Kind of the entry at a path. Undefined if it does not exist. */
  stat(path: string): Promise<"file" | "folder" | undefined>;
  /** The path of a file or folder without symbolic links. Undefined if it cannot be read. */
  resolve(path: string): Promise<string | undefined>;
  /** Names in a folder. */
  list(folder: string): Promise<string[]>;
  readText(path: string): Promise<string>;
  open(path: string): Promise<OpenFile>;
  /**
   * Writes a file completely, or leaves the old one untouched. If interrupted, it may leave a file `.NAME.UUID` in the
   * same folder.
   */
  write(
    path: string,
    parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  ): Promise<void>;
  /** Appends to a file, which is created if it does not exist. */
  append(path: string, bytes: Uint8Array): Promise<void>;
  /** Creates a folder and its parents. Does nothing if it exists. */
  makeFolder(folder: string): Promise<void>;
  /** Removes a file. Does nothing if it does not exist. */
  remove(path: string): Promise<void>;
  /** Acquires a file as a lock, unless a running process has it. */
  lock(path: string): Promise<Lock>;
  join(folder: string, name: string): string;
}

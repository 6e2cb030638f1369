/** Files as the engine sees them; whoever starts it passes them in. */

/** A file open for reading. */
export interface OpenFile {
  readonly size: number;
  /** What the system calls the file while it is open, if it is one of the system's. */
  readonly descriptor?: number;
  /** Exactly `length` bytes from `offset`, or an error that names the file. */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** A lock that was taken; or who has it, and whether it may be gone without this machine knowing. */
export type Lock =
  | { readonly release: () => Promise<void> }
  | { readonly owner: string; readonly gone: boolean };

/** File access. Errors name the path: a DataError where the user can mend it, a MachineError where the machine is at fault. */
export interface FileSystem {
  /** What is at a path; undefined where there is nothing. */
  stat(path: string): Promise<"file" | "folder" | undefined>;
  /** The path of a file or folder without symbolic links; undefined where there is nothing that can be read. */
  resolve(path: string): Promise<string | undefined>;
  /** Names in a folder. */
  list(folder: string): Promise<string[]>;
  readText(path: string): Promise<string>;
  open(path: string): Promise<OpenFile>;
  /** Write a whole file or leave what was there untouched. Interrupted, it may leave a file `.NAME.UUID` beside it. */
  write(
    path: string,
    parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  ): Promise<void>;
  /** Write behind what a file has; one that is not there is made. */
  append(path: string, bytes: Uint8Array): Promise<void>;
  /** Make a folder, and those it is in; nothing where it is there. */
  makeFolder(folder: string): Promise<void>;
  /** Remove a file; nothing where there is none. */
  remove(path: string): Promise<void>;
  /** Take a file as a lock, unless a process that runs has it. */
  lock(path: string): Promise<Lock>;
  join(folder: string, name: string): string;
}

/** Files that are dropped on a page. */

/** Returns whether files are dragged, and not, for example, text. */
export function dragsFiles({ dataTransfer }: DragEvent): boolean {
  return dataTransfer?.types.includes("Files") ?? false;
}

/** Returns the dropped files and the files in dropped folders. Must be called while the event is handled. */
export async function droppedFiles(
  { dataTransfer }: DragEvent,
): Promise<File[]> {
  const entries = [...dataTransfer?.items ?? []]
    .flatMap((item) => item.webkitGetAsEntry() ?? []);
  return (await Promise.all(entries.map(filesOf))).flat();
}

/** Returns a file, or the files of a folder without its subfolders: a checkpoint has none. */
async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  const inside = isFolder(entry) ? await entriesOf(entry) : [entry];
  return await Promise.all(
    inside.filter(isFile).map((file) =>
      new Promise<File>((resolve, reject) => file.file(resolve, reject))
    ),
  );
}

function isFolder(entry: FileSystemEntry): entry is FileSystemDirectoryEntry {
  return entry.isDirectory;
}

function isFile(entry: FileSystemEntry): entry is FileSystemFileEntry {
  return entry.isFile;
}

async function entriesOf(
  folder: FileSystemDirectoryEntry,
): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const all: FileSystemEntry[] = [];
  // Each call returns several entries, and none at the end.
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject)
    );
    if (some.length === 0) return all;
    all.push(...some);
  }
}

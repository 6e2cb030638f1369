/** Putting a kernel together, launch grids, dynamic lengths: what all kernel descriptions share. */

export * from "../../spec/kernel/make.ts";

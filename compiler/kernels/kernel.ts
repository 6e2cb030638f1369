/** Putting a kernel together, launch grids, run-time lengths: what all kernel descriptions share. */

export * from "../../spec/kernel/make.ts";

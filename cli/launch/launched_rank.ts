/** The rank that a launcher assigned to this process. */

import process from "node:process";

/** Returns the rank that Open MPI or MPICH assigned to this process, before it joins its job. 0 without a launcher. */
export function launchedRank(): number {
  const { OMPI_COMM_WORLD_RANK, PMI_RANK } = process.env;
  return Number(OMPI_COMM_WORLD_RANK ?? PMI_RANK ?? 0);
}

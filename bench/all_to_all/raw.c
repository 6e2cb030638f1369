/* MPI_Alltoallv and MPI_Ialltoallv alone: `raw BYTES…` prints a line of JSON for each size per pair, ms of each batch. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCHES = 5 };

static void print(const char *name, const double *ms) {
  printf(",\"%s\":[", name);
  for (int i = 0; i < BATCHES; i++) printf(i ? ",%.6f" : "%.6f", ms[i]);
  printf("]");
}

int main(int argc, char **argv) {
  int rank, ranks;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (int a = 1; a < argc; a++) {
    const long bytes = atol(argv[a]);
    const int repeat = bytes > 1 << 22 ? 3 : bytes >= 1 << 20 ? 10 : 30;
    char *from = malloc(bytes * ranks), *to = malloc(bytes * ranks);
    int counts[ranks], offsets[ranks];
    memset(from, rank, bytes * ranks);
    memset(to, 0, bytes * ranks);
    for (int p = 0; p < ranks; p++) {
      counts[p] = bytes;
      offsets[p] = bytes * p;
    }
    double ms[2][BATCHES];
    for (int batch = -1; batch < BATCHES; batch++) {
      for (int blocking = 0; blocking < 2; blocking++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double start = MPI_Wtime();
        for (int i = 0; i < repeat; i++) {
          if (blocking) {
            MPI_Alltoallv(from, counts, offsets, MPI_BYTE, to, counts, offsets,
                          MPI_BYTE, MPI_COMM_WORLD);
          } else {
            MPI_Request request;
            MPI_Ialltoallv(from, counts, offsets, MPI_BYTE, to, counts,
                           offsets, MPI_BYTE, MPI_COMM_WORLD, &request);
            MPI_Wait(&request, MPI_STATUS_IGNORE);
          }
        }
        if (batch >= 0)
          ms[blocking][batch] = (MPI_Wtime() - start) * 1000 / repeat;
      }
    }
    if (rank == 0) {
      printf("{\"bytes\":%ld", bytes);
      print("alltoallv", ms[1]);
      print("ialltoallv", ms[0]);
      printf("}\n");
      fflush(stdout);
    }
    free(from);
    free(to);
  }
  MPI_Finalize();
  return 0;
}

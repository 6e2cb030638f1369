/*
 * Clients of a server at 127.0.0.1: `client PORT CLIENTS` reads JSON bodies from its input, one a line, and posts them to
 * /v1/completions, one at a time per client. It parses no JSON: it looks only for the end of a response and for the number
 * of tokens. Prints them as a line of JSON, with the time and its own CPU time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1 << 16, KEPT = 1 << 12 };

struct client {
  long bytes, length; /* of the response so far, and of all of it if known */
  int kept;
  char last[KEPT + READ + 1]; /* the last bytes of the response */
};

static char *input, *next_body;
static int port;
static long tokens;

static void fail(const char *what) {
  fprintf(stderr, "client: %s\n", what);
  exit(1);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

static int connected(void) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  if (connect(fd, (struct sockaddr *)&to, sizeof to)) fail("no connection");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return fd;
}

/* Sends the next body. Returns whether there was one. */
static int post(int fd, struct client *c) {
  if (!*next_body) return 0;
  char *end = strchr(next_body, '\n');
  const int length = end ? end - next_body : (int)strlen(next_body);
  char *text;
  const int bytes = asprintf(&text,
      "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
      "content-type: application/json\r\ncontent-length: %d\r\n\r\n%.*s",
      length, length, next_body);
  if (write(fd, text, bytes) != bytes) fail("short write");
  free(text);
  next_body += length + (end != NULL);
  c->bytes = c->length = c->kept = 0;
  return 1;
}

/* Reads a part of a response. Returns whether it is complete. */
static int received_all(int fd, struct client *c) {
  const long got = read(fd, c->last + c->kept, READ);
  if (got <= 0) fail("the server closed a connection");
  const int first = c->bytes == 0;
  c->bytes += got;
  c->kept += got;
  c->last[c->kept] = 0;
  if (first) {
    if (strncmp(c->last, "HTTP/1.1 200", 12)) fail(c->last);
    char *length = strcasestr(c->last, "\r\ncontent-length: ");
    char *body = strstr(c->last, "\r\n\r\n");
    if (!body) fail("headers in parts");
    if (length && length < body)
      c->length = body + 4 - c->last + atol(length + 18);
  }
  const int done = c->length > 0
      ? c->bytes == c->length
      : c->kept > 6 && !memcmp(c->last + c->kept - 7, "\r\n0\r\n\r\n", 7);
  if (done) {
    char *used = strstr(c->last, "\"completion_tokens\":");
    if (!used) fail("no number of tokens");
    tokens += atol(used + 20);
  } else if (c->kept > KEPT) {
    memmove(c->last, c->last + c->kept - KEPT, KEPT);
    c->kept = KEPT;
  }
  return done;
}

int main(int argc, char **argv) {
  port = atoi(argv[1]);
  const int count = atoi(argv[2]);
  size_t room = 0;
  if (getdelim(&input, &room, 0, stdin) < 0) fail("no bodies");
  next_body = input;
  struct client *clients = calloc(count, sizeof *clients);
  struct pollfd *fds = calloc(count, sizeof *fds);
  const double begun = seconds();
  int busy = 0;
  for (int i = 0; i < count; i++) {
    fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    if (!*next_body) continue;
    fds[i].fd = connected();
    busy += post(fds[i].fd, &clients[i]);
  }
  while (busy > 0) {
    poll(fds, count, -1);
    for (int i = 0; i < count; i++) {
      struct client *c = &clients[i];
      if (!fds[i].revents || !received_all(fds[i].fd, c)) continue;
      if (post(fds[i].fd, c)) continue;
      close(fds[i].fd);
      fds[i].fd = -1;
      busy--;
    }
  }
  const double ms = 1000 * (seconds() - begun);
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  printf("{\"made\":%ld,\"ms\":%.3f,\"clientSeconds\":%.6f}\n", tokens, ms,
      used.ru_utime.tv_sec + used.ru_stime.tv_sec
          + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
  return 0;
}

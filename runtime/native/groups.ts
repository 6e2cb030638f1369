/** C text of groups of expert weights, and of launches whose experts are in several mappings. */

/** Maximum bindings of mapped weights in a launch: those of all its bindings. */
const MAX_BINDINGS = 64;

/**
 * Kernels find an expert by its number from the start of a weight. If the pages of its files do not allow that, a weight
 * has several mappings, each with addresses for all experts. A launch runs once for each part of its list of tiles whose
 * experts are in the same mappings, with the addresses of these mappings. Tiles are independent, so bits do not change.
 */
export const GROUPS_IN_C = `
// Runs a launch once for each part of its experts. The record has the addresses of the first part.
// Returns 0 if its list is damaged or memory is missing.
static int run_parts(struct pool *p, struct launch *l, struct kernel *kernel, const struct expert_group *g) {
  if (g->parts == 1) {
    run_launch(p, l, kernel, groups_of(l, kernel), now());
    return 1;
  }
  uint32_t *tiles = l->bindings[l->tiles].address, n = tiles[0], used = 0;
  uint32_t bindings = (l->words - sizeof *l / 4) / (sizeof *l->bindings / 4), at[${MAX_BINDINGS}], weight[${MAX_BINDINGS}];
  uint64_t bytes = 4 * (3ull * n + 1);
  if (bytes > 4 * l->bindings[l->tiles].length) return 0;
  for (uint32_t i = 0; i < n; i++) if (tiles[1 + 3 * i] >= g->experts) return 0;
  uint32_t *all = malloc(bytes);
  if (!all) return 0;
  memcpy(all, tiles, bytes);
  for (uint32_t b = 0; b < bindings; b++) {
    for (uint32_t w = 0; w < g->mapped && used < ${MAX_BINDINGS}; w++) {
      if ((char *)l->bindings[b].address == g->bases[w]) { at[used] = b; weight[used++] = w; break; }
    }
  }
  for (uint32_t part = 0; part < g->parts && !p->stop; part++) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
      if (g->part[all[1 + 3 * i]] == part) memcpy(&tiles[1 + 3 * count++], &all[1 + 3 * i], 12);
    }
    if (count == 0) continue;
    tiles[0] = count;
    for (uint32_t i = 0; i < used; i++) l->bindings[at[i]].address = (uint32_t *)g->bases[(uint64_t)part * g->mapped + weight[i]];
    if (kernel->traits.along.words) l->shape = shape_of(&p->shapes, l, &kernel->traits.along);
    run_launch(p, l, kernel, groups_of(l, kernel), now());
  }
  for (uint32_t i = 0; i < used; i++) l->bindings[at[i]].address = (uint32_t *)g->bases[weight[i]];
  memcpy(tiles, all, bytes);
  free(all);
  return 1;
}

// Runs a launch of a group.
static void run_experts(struct pool *p, struct launch *l, struct kernel *kernel) {
  struct streams *s = p->streams;
  pthread_mutex_lock(&s->mutex);
  struct expert_group *g = s->groups[l->experts - 1];
  if (g->weights > 0) run_streamed(p, l, kernel, g);
  else {
    pthread_mutex_unlock(&s->mutex);
    int good = run_parts(p, l, kernel, g);
    pthread_mutex_lock(&s->mutex);
    if (!good) s->failed = 1;
  }
  if (s->failed) p->stop = 1;
  pthread_mutex_unlock(&s->mutex);
}

// Whether a launch may wait for reads of experts. Requires the thread that creates groups.
static int may_wait(const struct pool *p, const struct launch *l) {
  return l->experts && p->streams->groups[l->experts - 1]->weights > 0;
}

// A weight of experts in several mappings, with an address for each expert: that of the first expert, if all were in
// its mapping. Returns the weight's number, or -1.
int64_t switchyard_place(struct pool *p, uint64_t experts, const uint64_t *bases) {
  struct streams *s = streams_of(p);
  char **copy = malloc(experts * sizeof *copy);
  struct weight *weights = s && copy ? realloc(s->weights, (s->weight_count + 1) * sizeof *weights) : 0;
  if (!weights) {
    free(copy);
    return -1;
  }
  for (uint64_t e = 0; e < experts; e++) copy[e] = (char *)bases[e];
  s->weights = weights;
  weights[s->weight_count] = (struct weight){ .experts = experts, .bases = copy };
  return s->weight_count++;
}

// Fills a group in: its weights, streamed ones first, and the parts of its experts. Returns 0 without memory.
static int fill_group(struct streams *s, struct expert_group *g, uint32_t count, const uint32_t *weights) {
  uint32_t experts = g->experts;
  g->ids = malloc(count * sizeof *g->ids);
  g->places = malloc(count * sizeof *g->places);
  g->list = calloc(experts, sizeof *g->list);
  g->part = calloc(experts, sizeof *g->part);
  g->bases = malloc((uint64_t)experts * count * sizeof *g->bases);
  if (!g->ids || !g->places || !g->list || !g->part || !g->bases) return 0;
  for (uint32_t w = 0; w < count; w++) if (!s->weights[weights[w]].bases) g->ids[g->weights++] = weights[w];
  for (uint32_t w = 0; w < count; w++) if (s->weights[weights[w]].bases) g->ids[g->weights + g->mapped++] = weights[w];
  for (uint32_t w = 0; w < g->weights; w++) g->places[w] = s->weights[g->ids[w]].places;
  uint64_t size = g->mapped * sizeof *g->bases;
  for (uint32_t e = 0; e < experts; e++) {
    char **bases = g->bases + (uint64_t)g->parts * g->mapped;
    for (uint32_t w = 0; w < g->mapped; w++) bases[w] = s->weights[g->ids[g->weights + w]].bases[e];
    uint32_t part = 0;
    while (part < g->parts && memcmp(g->bases + (uint64_t)part * g->mapped, bases, size)) part++;
    if (part == g->parts) g->parts++;
    g->part[e] = part;
  }
  return 1;
}

// The group of the streamed weights, and of those in several mappings, of a launch. Follows a group with the same list
// of tiles, or 0. Returns its number from 1, or 0.
uint32_t switchyard_group(struct pool *p, uint32_t count, const uint32_t *weights, uint32_t previous) {
  struct streams *s = p->streams;
  struct expert_group *g = calloc(1, sizeof *g);
  pthread_mutex_lock(&s->mutex);
  struct expert_group **groups = realloc(s->groups, (s->group_count + 1) * sizeof *groups);
  uint64_t experts = s->weights[weights[0]].experts, room = s->room + experts + 1;
  struct job *queue = malloc(room * sizeof *queue);
  s->places += count * experts;
  struct pages *spare = realloc(s->spare, s->places * sizeof *spare);
  uint32_t number = 0;
  if (groups) s->groups = groups;
  if (spare) s->spare = spare;
  if (g) *g = (struct expert_group){ .number = s->group_count, .experts = experts };
  if (g && groups && queue && spare && fill_group(s, g, count, weights)) {
    uint64_t waiting = s->tail - s->head;
    for (uint64_t i = 0; i < waiting; i++) queue[i] = s->queue[(s->head + i) % s->room];
    free(s->queue);
    s->queue = queue; s->room = room; s->head = 0; s->tail = waiting;
    s->groups[s->group_count++] = g;
    number = s->group_count;
    if (previous && g->weights > 0) s->groups[previous - 1]->next = number;
  } else {
    free(queue);
    free_group(g);
  }
  pthread_mutex_unlock(&s->mutex);
  return number;
}
`;

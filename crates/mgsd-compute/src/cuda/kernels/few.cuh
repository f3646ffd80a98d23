// What the kernel of products of few rows is made of. Put in front of it before it is compiled.
//
// Set when compiling:
//   ROWS    rows of x, rounded up to 8, 16 or 32
//   GROUPS  groups of four warps that multiply
//   SLICES  times 64 rows of a tile that such a group multiplies
//   HEIGHT  rows of weights in a tile, a multiple of 8, at most 64 * GROUPS * SLICES and 256
//   SPLIT   blocks of a cluster
//   TILES   tiles of a block; GATED: even, the first half of `w0`, the second of `w1`
//   STAGES  tiles in the ring
//   GATED   1: out = silu(x w0ᵀ) * (x w1ᵀ)
//   NORM    1: RMSNorm in front
//   LOW     rows of the adapters' first halves together; 0: no adapters

#define WORKERS (GROUPS * 128)
#define THREADS (WORKERS + 32)
// Groups of eight rows of x.
#define COLUMNS (ROWS / 8)
#define TILE_BYTES (HEIGHT * 128)
#define ROWS_BYTES (ROWS * 128)
// Times sixteen rows in the place for a tile's sums.
#define STRIPS (GROUPS * SLICES * 4)
#define LOW_AT (TILE_BYTES + (NORM ? 0 : ROWS_BYTES))
#define LOW_BYTES (LOW * 128)
#define STAGE_BYTES (LOW_AT + LOW_BYTES)
// Times 64 rows of the adapters' first halves, and how many of those a group of four warps multiplies.
#define LOW_SLICES ((LOW + 63) / 64)
#define LOW_EACH ((LOW_SLICES + GROUPS - 1) / GROUPS)
// Where in a stage the first slice begins, so that the last ends with the stage if there is room for that, and the row
// of it that is the first of the adapters.
#define LOW_LAST (STAGE_BYTES >= LOW_SLICES * 8192)
#define LOW_BEGIN (LOW_LAST ? STAGE_BYTES - LOW_SLICES * 8192 : LOW_AT)
#define LOW_ROW (LOW_LAST ? LOW_SLICES * 64 - LOW : 0)
// Rows of x that are normed side by side, and the parts that a row's columns are dealt to.
#define SIDE (WORKERS / 8 < ROWS ? WORKERS / 8 : ROWS)
#define PARTS (WORKERS / 8 / SIDE)

// Three sets of weights [outputs, width] whose results go to three places, each with a low-rank adapter if `b` is there,
// which adds low b [outputs, rank]ᵀ; low [rows, LOW] = scale * norm(x) aᵀ lies in shared memory, `rank` columns a set.
struct Weights {
    int outputs[3];
    bf16* out[3];
    const bf16* b[3];
};

__device__ __forceinline__ Tile tile_at(const int (&outputs)[3], int group, int index) {
#if GATED
    const int half = TILES / 2, second = index >= half;
    return {second, (group * half + index - second * half) * HEIGHT};
#else
    index += group * TILES;
    const int first = (outputs[0] + HEIGHT - 1) / HEIGHT, second = (outputs[1] + HEIGHT - 1) / HEIGHT;
    if (index < first || outputs[1] == 0) return {0, index * HEIGHT};
    index -= first;
    if (index < second || outputs[2] == 0) return {1, index * HEIGHT};
    return {2, (index - second) * HEIGHT};
#endif
}

// Sixteen outputs of eight rows: rows 8 * column.. and the sixteen from 16 * strip of tile `index`. A lane has four of
// them: `output` and the eighth after it, in two rows; `at` is where the first is written.
struct Unit {
    Tile tile;
    int column, strip, index, output, outputs;
    i64 at;
    bool there[4];
};

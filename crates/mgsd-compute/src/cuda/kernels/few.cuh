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

// What another kernel may have written while this one was already there: read past the first cache.
__device__ __forceinline__ float fresh(const bf16* from) {
    u16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return __uint_as_float((u32)v << 16);
}

__device__ __forceinline__ u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Where 64 rows of weights, or the rows of x, lie in shared memory.
__device__ __forceinline__ word describe(u32 at) {
    return (word)(at >> 4 & 0x3fff) | (word)1 << 16 | (word)64 << 32 | (word)1 << 62;
}

// c += weights xᵀ over 16 columns.
__device__ __forceinline__ void multiply_together(float (&c)[COLUMNS][4], word weights, word x) {
    float* v = &c[0][0];
#define FOUR(i) "+f"(v[i]), "+f"(v[i + 1]), "+f"(v[i + 2]), "+f"(v[i + 3])
#if ROWS == 8
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                 : FOUR(0)
                 : "l"(weights), "l"(x));
#elif ROWS == 16
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, "
                 "0, 0;"
                 : FOUR(0), FOUR(4)
                 : "l"(weights), "l"(x));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
                 "%12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(4), FOUR(8), FOUR(12)
                 : "l"(weights), "l"(x));
#endif
#undef FOUR
}

// 64 columns of some rows of a matrix into shared memory; zeros where the matrix has no rows.
__device__ __forceinline__ void copy(u32 to, const Map* map, int column, int row, u32 barrier, word policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}

// Three sets of weights [outputs, width] whose results go to three places, each with a low-rank adapter if `b` is there,
// which adds low b [outputs, rank]ᵀ; low [rows, LOW] = scale * norm(x) aᵀ lies in shared memory, `rank` columns a set.
struct Weights {
    int outputs[3];
    bf16* out[3];
    const bf16* b[3];
};

template <class P> __device__ __forceinline__ P pick(P const (&of)[3], int set) {
    return set == 0 ? of[0] : set == 1 ? of[1] : of[2];
}

// Which weights a tile belongs to, and which of their outputs is its first; past the last there is none.
struct Tile {
    int set, first;
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

// Columns 2t.. and 2t + 8.. of a stretch of sixteen, of two rows of `b`.
struct Second {
    u32 words[4];
};

__device__ __forceinline__ Second second_at(const bf16* one, const bf16* other, int k, int rank) {
    const bool there = k < rank, more = k + 8 < rank;
    return {one && there ? *(const u32*)(one + k) : 0, other && there ? *(const u32*)(other + k) : 0,
            one && more ? *(const u32*)(one + k + 8) : 0, other && more ? *(const u32*)(other + k + 8) : 0};
}

// Sixteen outputs of eight rows: rows 8 * column.. and the sixteen from 16 * strip of tile `index`. A lane has four of
// them: `output` and the eighth after it, in two rows; `at` is where the first is written.
struct Unit {
    Tile tile;
    int column, strip, index, output, outputs;
    i64 at;
    bool there[4];
};

// Products of few rows with weights that are read once: out = x Wᵀ for up to 64 rows of x, bfloat16, compute capability
// 9.0 or later.
//
// Time goes into reading weights, so they stream: a block keeps a ring of STAGES steps of its weights in shared memory,
// and the first of them are asked for before the kernel waits for the one that makes x. A warp owns a tile, 16 rows of
// weights (16 outputs); a step is 64 of their columns. x goes through shared memory, too, and is multiplied there by the
// scale of its RMSNorm while the step before is computed; the norm's r, one number a row, is put in at the end. The
// blocks of a cluster share the columns of the same tiles; their sums are added in the order of their ranks, so that
// bits repeat.
//
// Four warps multiply together (wgmma): 64 rows of weights by all rows of x, both from shared memory in rows of 128
// bytes whose 16-byte pieces are exchanged by the row's place among eight (the 128-byte swizzle).
//
// Set when compiling:
//   ROWS    rows of x, rounded up to 8, 16, 32 or 64
//   WARPS   warps of a block, a multiple of 4
//   STAGES  steps in the ring, at least 3
//   GATED   1: a tile is eight rows of `w0` and eight of `w1`, and out = silu(x w0ᵀ) * (x w1ᵀ)
//   NORM    1: RMSNorm in front

typedef unsigned long long word;

#define THREADS (WARPS * 32)
// Groups of eight rows of x.
#define COLUMNS (ROWS / 8)
// 16-byte pieces of x that a thread takes care of.
#define PIECES ((ROWS * 8 + THREADS - 1) / THREADS)
#define TILE_BYTES 2048
#define STEP_BYTES (WARPS * TILE_BYTES)
#define ROWS_BYTES (ROWS * 128)
// Groups of sums that fit where a tile of weights was.
#define PART (COLUMNS < 4 ? COLUMNS : 4)
// Steps beyond the ring whose weights are asked into the second cache while x is not there yet.
#define AHEAD 4

__device__ __forceinline__ u32 shared_at(const void* at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ uint4 shared_load(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

__device__ __forceinline__ void shared_store(u32 at, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void store_sums(u32 at, const float (&v)[4]) {
    shared_store(at, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
}

// What another kernel may have written while this one was already there: read past the first cache.
__device__ __forceinline__ uint4 fresh16(const void* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

__device__ __forceinline__ u32 fresh4(const void* from) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}

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
#elif ROWS == 32
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
                 "%12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(4), FOUR(8), FOUR(12)
                 : "l"(weights), "l"(x));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
                 "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, "
                 "%33, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(4), FOUR(8), FOUR(12), FOUR(16), FOUR(20), FOUR(24), FOUR(28)
                 : "l"(weights), "l"(x));
#endif
#undef FOUR
}

// Three sets of weights [outputs, width] whose results go to three places, each with a low-rank adapter if `b` is there,
// which adds low [rows, rank] b [outputs, rank]ᵀ.
struct Weights {
    const bf16* w[3];
    int outputs[3];
    bf16* out[3];
    const bf16 *low[3], *b[3];
};

template <class P> __device__ __forceinline__ P pick(P const (&of)[3], int set) {
    return set == 0 ? of[0] : set == 1 ? of[1] : of[2];
}

// The rows of one tile: which weights, and which of their outputs is the first.
struct Tile {
    int set, first;
    bool live;
};

__device__ __forceinline__ Tile tile_at(const Weights& weights, int index) {
#if GATED
    return {0, index * 8, index * 8 < weights.outputs[0]};
#else
    int first = (weights.outputs[0] + 15) / 16, second = (weights.outputs[1] + 15) / 16, set = 0;
    if (index >= first) {
        set = 1;
        index -= first;
        if (index >= second) {
            set = 2;
            index -= second;
        }
    }
    return {set, index * 16, index * 16 < pick(weights.outputs, set)};
#endif
}

// Adds rows `b` (outputs g and g + 8 of a tile; null: zeros) times rows 8j.. of `low`.
__device__ __forceinline__ void adapt(
    float (&c)[4], const bf16* low, const bf16* b_low, const bf16* b_high, int row, int rows, int rank, int t) {
    for (int k = 2 * t; k < rank; k += 16) {
        bool second = k + 8 < rank, there = row < rows;
        u32 a0 = b_low ? *(const u32*)(b_low + k) : 0, a1 = b_high ? *(const u32*)(b_high + k) : 0;
        u32 a2 = b_low && second ? *(const u32*)(b_low + k + 8) : 0;
        u32 a3 = b_high && second ? *(const u32*)(b_high + k + 8) : 0;
        u32 x0 = there ? fresh4(low + row * rank + k) : 0;
        u32 x1 = there && second ? fresh4(low + row * rank + k + 8) : 0;
        multiply(c, a0, a1, a2, a3, x0, x1);
    }
}

__device__ __forceinline__ void put(bf16* to, const bf16* base, i64 at, float value) {
    if (base) value += fresh(base + at);
    to[at] = narrow<bf16>(value);
}

// Writes what a tile and eight rows of x gave: c[0], c[1] belong to output g and rows 2t, 2t + 1, c[2], c[3] to output
// g + 8 (GATED: to the same output of the other weights).
__device__ __forceinline__ void finish(
    float (&c)[4], const Weights& weights, Tile tile, int column, int rows, int rank, float alpha, const float* scales,
    const bf16* base, int lane) {
    int g = lane / 4, t = lane % 4, row = column * 8 + 2 * t;
#if NORM
    float low = scales[row] * alpha, high = scales[row + 1] * alpha;
#else
    float low = alpha, high = alpha;
#endif
    c[0] *= low; c[1] *= high; c[2] *= low; c[3] *= high;
#if GATED
    int output = tile.first + g, outputs = weights.outputs[0];
    bool there = output < outputs;
    if (rank) {
        i64 at = (i64)output * rank;
        if (weights.b[0]) adapt(c, weights.low[0], there ? weights.b[0] + at : 0, 0, column * 8 + g, rows, rank, t);
        if (weights.b[1]) adapt(c, weights.low[1], 0, there ? weights.b[1] + at : 0, column * 8 + g, rows, rank, t);
    }
    if (!there) return;
    i64 at = (i64)row * outputs + output;
    if (row < rows) put(weights.out[0], 0, at, c[0] * sigmoid(c[0]) * c[2]);
    if (row + 1 < rows) put(weights.out[0], 0, at + outputs, c[1] * sigmoid(c[1]) * c[3]);
#else
    int output = tile.first + g, outputs = pick(weights.outputs, tile.set);
    bool first = output < outputs, second = output + 8 < outputs;
    if (rank) {
        const bf16 *b = pick(weights.b, tile.set), *x = pick(weights.low, tile.set);
        if (b)
            adapt(c, x, first ? b + (i64)output * rank : 0, second ? b + (i64)(output + 8) * rank : 0, column * 8 + g, rows,
                  rank, t);
    }
    bf16* out = pick(weights.out, tile.set);
    i64 at = (i64)row * outputs + output;
    if (row < rows) {
        if (first) put(out, base, at, c[0]);
        if (second) put(out, base, at + 8, c[2]);
    }
    if (row + 1 < rows) {
        if (first) put(out, base, at + outputs, c[1]);
        if (second) put(out, base, at + outputs + 8, c[3]);
    }
#endif
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where `at` of this block's shared memory lies in that of the block with this rank in the cluster.
__device__ __forceinline__ u32 peer(u32 at, int rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

// A grid of groups times `blocks`, which is the size of a cluster. A group owns `passes` times WARPS tiles; with more
// than one block in a cluster there is one pass. width is a multiple of 64. `base` is added to the result of the first
// weights and may be where it goes. A `rank` of 0: no adapters.
extern "C" __global__ void __launch_bounds__(THREADS, 1) few(
    const bf16* x, const float* norm, const bf16* base, const bf16* w0, const bf16* w1, const bf16* w2, bf16* out0,
    bf16* out1, bf16* out2, int outputs0, int outputs1, int outputs2, const bf16* low0, const bf16* low1, const bf16* low2,
    const bf16* b0, const bf16* b1, const bf16* b2, int rank, int rows, int width, int passes, int blocks,
    float alpha, float eps) {
    // The ring, STAGES + 1 steps of x, two numbers for each row of x, this block's columns of the norm's scale.
    extern __shared__ __align__(1024) unsigned char memory[];
    const Weights weights = {
        {w0, w1, w2}, {outputs0, outputs1, outputs2}, {out0, out1, out2}, {low0, low1, low2}, {b0, b1, b2}};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int order = blockIdx.x % blocks;
    const int group = blockIdx.x / blocks;
    const int begin = width / 64 * order / blocks, count = width / 64 * (order + 1) / blocks - begin;
    const int steps = count * passes;
    const u32 ring = shared_at(memory), own = ring + warp * TILE_BYTES, rows_at = ring + STAGES * STEP_BYTES;
    float* squares = reinterpret_cast<float*>(memory + STAGES * STEP_BYTES + (STAGES + 1) * ROWS_BYTES);
    float* scales = squares + ROWS;
#if NORM
    float* norm_scale = scales + ROWS;
    for (int i = threadIdx.x; i < count * 64; i += THREADS) norm_scale[i] = norm[begin * 64 + i];
#endif

    // A multiprocessor has room for one block: the next kernel's blocks start where this one's end.
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

    // A warp copies its own tile, eight lanes a row: rows lane / 8, + 4, + 8, + 12.
    int load_pass = 0, load_step = 0;
    const bf16 *upper, *lower;
    bool loads;
    const u32 to = lane / 8 * 128 + (lane % 8 ^ lane / 8) * 16;
    auto aim = [&]() {
        Tile tile = tile_at(weights, (group * passes + load_pass) * WARPS + warp);
        loads = tile.live;
        i64 offset = (i64)(tile.first + lane / 8) * width + begin * 64 + lane % 8 * 8;
        upper = pick(weights.w, tile.set) + offset;
#if GATED
        lower = w1 + offset;
#else
        // Half a tile: its rows are read twice, and what the second half gives is not used.
        lower = upper + (tile.first + 8 < pick(weights.outputs, tile.set) ? 8 * (i64)width : 0);
#endif
    };
    aim();
    word once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    auto copy = [&](u32 place, const bf16* source) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(place), "l"(source),
                     "l"(once)
                     : "memory");
    };
    auto load = [&](int slot) {
        if (loads) {
            const u32 place = own + slot * STEP_BYTES + to;
            const int column = load_step * 64;
            copy(place, upper + column);
            copy((place ^ 64) + 512, upper + column + 4 * (i64)width);
            copy(place + 1024, lower + column);
            copy((place ^ 64) + 1536, lower + column + 4 * (i64)width);
        }
        if (++load_step == count) {
            load_step = 0;
            load_pass++;
            if (load_pass < passes) aim();
        }
    };
    auto commit = [&]() { asm volatile("cp.async.commit_group;" ::: "memory"); };
    for (int s = 0; s < STAGES - 1; s++)
        if (s < steps) load(s);
    // Eight lanes look at the same lines, so each takes another step.
    for (int s = load_step + lane % 8; loads && s < min(load_step + AHEAD, count); s += 8) {
        const int column = s * 64 - lane % 8 * 8;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(upper + column));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(upper + column + 4 * (i64)width));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(lower + column));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(lower + column + 4 * (i64)width));
    }

    // Everything before this line touches only what no kernel writes.
    asm volatile("griddepcontrol.wait;" ::: "memory");

    // x: a thread takes eight numbers of a row, always in the same columns of a step.
    const int piece = threadIdx.x % 8, x_row = threadIdx.x / 8;
    const u32 x_to = rows_at + x_row * 128 + (piece ^ x_row % 8) * 16;
    int fetch_column = begin * 64 + piece * 8, fetch_left = count, fetch_slot = 0;
    auto fetch = [&]() {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const int row = x_row + i * (THREADS / 8);
            if (row < ROWS)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                 x_to + fetch_slot * ROWS_BYTES + i * (THREADS * 16)),
                             "l"(x + (row < rows ? (i64)row * width + fetch_column : 0)), "r"(row < rows ? 16 : 0)
                             : "memory");
        }
        fetch_column += 64;
        if (--fetch_left == 0) {
            fetch_left = count;
            fetch_column -= count * 64;
        }
        fetch_slot = fetch_slot == STAGES ? 0 : fetch_slot + 1;
    };
#if NORM
    float sums[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) sums[i] = 0.0f;
    int scale_column = piece * 8;
#endif
    // The norm's scale for step `step` of x, whose pieces this thread copied itself.
    auto convert = [&](int step, int slot) {
#if NORM
        const Eight scale = load8(norm_scale + scale_column);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (x_row + i * (THREADS / 8) >= ROWS) continue;
            const u32 at = x_to + slot * ROWS_BYTES + i * (THREADS * 16);
            uint4 v = shared_load(at);
            u32 words[4] = {v.x, v.y, v.z, v.w};
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float first = __uint_as_float(words[j] << 16), second = __uint_as_float(words[j] & 0xffff0000u);
                sum += first * first + second * second;
                words[j] = pack(first * scale.x[2 * j], second * scale.x[2 * j + 1]);
            }
            if (step < count) sums[i] += sum;
            shared_store(at, make_uint4(words[0], words[1], words[2], words[3]));
        }
        scale_column = scale_column + 64 < count * 64 ? scale_column + 64 : piece * 8;
#endif
    };
    // Afterwards `squares` holds the sums of squares of this block's columns; for every thread after a barrier.
    auto gather = [&]() {
#if NORM
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float sum = sums[i];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            sum += __shfl_xor_sync(0xffffffffu, sum, 4);
            const int row = x_row + i * (THREADS / 8);
            if (piece == 0 && row < ROWS) squares[row] = sum;
        }
#endif
    };
    // Steps of x go one ahead of those of weights: the first two together, then one for each step of weights.
    fetch();
    for (int s = 0; s < STAGES - 1; s++) {
        if (s + 1 < steps) fetch();
        commit();
    }
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    __syncthreads();
    convert(0, 0);

    float c[COLUMNS][4];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
        for (int n = 0; n < 4; n++) c[j][n] = 0.0f;
    int slot = 0, x_slot = 0, pass = 0, left = count;
    for (int s = 0; s < steps; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // What threads copied and wrote is about to be read by the tensor cores.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        const word a = describe(ring + slot * STEP_BYTES + warp / 4 * (4 * TILE_BYTES));
        const word b = describe(rows_at + x_slot * ROWS_BYTES);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_together(c, a + 2 * k, b + 2 * k);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (s + STAGES - 1 < steps) load(slot == 0 ? STAGES - 1 : slot - 1);
        if (s + STAGES < steps) fetch();
        commit();
        x_slot = x_slot == STAGES ? 0 : x_slot + 1;
        if (s + 1 < steps) convert(s + 1, x_slot);
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        // The sums are there from here on.
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
        if (--left == 0 && blocks == 1) {
            left = count;
            if (pass == 0) gather();
            __syncthreads();
#if NORM
            if (pass == 0) {
                for (int row = threadIdx.x; row < ROWS; row += THREADS)
                    scales[row] = rsqrtf(squares[row] / width + eps);
                __syncthreads();
            }
#endif
            // The tile that was just used takes the sums, so that one copy of the code serves all of them.
            const Tile tile = tile_at(weights, (group * passes + pass) * WARPS + warp);
            const u32 place = own + slot * STEP_BYTES + lane * 16;
#pragma unroll
            for (int part = 0; part < COLUMNS; part += PART) {
                __syncwarp();
#pragma unroll
                for (int j = 0; j < PART; j++) store_sums(place + j * 512, c[part + j]);
                __syncwarp();
#pragma unroll 1
                for (int j = 0; j < PART && tile.live; j++) {
                    uint4 v = shared_load(place + j * 512);
                    float sum[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
                    finish(sum, weights, tile, part + j, rows, rank, alpha, scales, base, lane);
                }
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int n = 0; n < 4; n++) c[j][n] = 0.0f;
            pass++;
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    if (blocks == 1) return;

    // The ring is free now; it takes each block's sums for the others to read.
    gather();
    __syncthreads();
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) store_sums(ring + ((warp * COLUMNS + j) * 32 + lane) * 16, c[j]);
    cluster_sync();
#if NORM
    for (int row = threadIdx.x; row < ROWS; row += THREADS) {
        float sum = 0.0f;
        for (int block = 0; block < blocks; block++) {
            float part;
            asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(part) : "r"(peer(shared_at(squares + row), block)));
            sum += part;
        }
        scales[row] = rsqrtf(sum / width + eps);
    }
    __syncthreads();
#endif
#pragma unroll 1
    for (int unit = order * WARPS + warp; unit < WARPS * COLUMNS; unit += blocks * WARPS) {
        const Tile tile = tile_at(weights, group * WARPS + unit / COLUMNS);
        if (!tile.live) continue;
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
        for (int block = 0; block < blocks; block++) {
            float part[4];
            asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(part[0]), "=f"(part[1]), "=f"(part[2]), "=f"(part[3])
                         : "r"(peer(ring + (unit * 32 + lane) * 16, block)));
#pragma unroll
            for (int n = 0; n < 4; n++) sum[n] += part[n];
        }
        finish(sum, weights, tile, unit % COLUMNS, rows, rank, alpha, scales, base, lane);
    }
    cluster_sync();
}

// Products of few rows with weights that are read once: out = x Wᵀ for up to 32 rows of x, bfloat16, compute capability
// 9.0 (its tensor cores and its copy engine).
//
// Time goes into reading weights, so they stream: one warp asks the copy engine for tiles (HEIGHT rows of weights by 64
// columns) into a ring in shared memory, the other warps wait for a tile, multiply it by all rows of x and give its
// place back. The first tiles are asked for before the kernel waits for the one that makes x, so that memory is busy while
// one kernel ends and the next begins.
//
// A block owns TILES tiles by some of their columns. The blocks of a cluster share the columns of the same tiles; their
// sums are added in the order of their ranks, so that bits repeat. Tiles and x lie in shared memory in rows of 128 bytes
// whose 16-byte pieces are exchanged by the row's place among eight (the 128-byte swizzle). With a norm the block's part
// of x is there as a whole, multiplied by the norm's scale; its r, one number a row, is put in at the end. Without, x
// comes with every tile.
//
// The first halves of low-rank adapters, a few rows each, come with the first tile of their columns: every cluster
// multiplies all of them and keeps what it found in shared memory for its own outputs, so that it waits for nobody else.

// A grid of groups of tiles times SPLIT, which is the size of a cluster. Block GROUPS * 128 + 32 threads. width is a
// multiple of 64. Maps with boxes of 64 columns by ROWS (x), HEIGHT (w) or `rank` rows (a, as many as LOW / rank; rank is
// a multiple of 8). `base` is added to the result of the first weights and may be where it goes. Shared memory: the ring
// (at least up to where its last tile would end had it 64 * GROUPS * SLICES rows, and the last slice of adapters), with
// a norm x [chunks][ROWS][64] and the scale of these columns; all that at least as large as the sums, (TILES * GROUPS *
// SLICES + LOW_SLICES) * 64 * ROWS floats, and low, ROWS * LOW numbers; `fixed` is where 2 * STAGES + 1 barriers begin, in
// front of them, with a norm, PARTS + 1 floats for each row.
extern "C" __global__ void __launch_bounds__(THREADS, 1) few(
    const __grid_constant__ Map x, const __grid_constant__ Map w0, const __grid_constant__ Map w1,
    const __grid_constant__ Map w2, const __grid_constant__ Map a0, const __grid_constant__ Map a1,
    const __grid_constant__ Map a2, const float* norm, const bf16* base, bf16* out0, bf16* out1, bf16* out2, int outputs0,
    int outputs1, int outputs2, const bf16* b0, const bf16* b1, const bf16* b2, int rank, int rows, int width, int fixed,
    float low_scale, float eps) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int order = blockIdx.x % SPLIT, group = blockIdx.x / SPLIT;
    const int begin = width / 64 * order / SPLIT, count = width / 64 * (order + 1) / SPLIT - begin;
    const u32 ring = shared_at(memory), rows_at = ring + STAGES * STAGE_BYTES;
    float* squares = reinterpret_cast<float*>(memory + fixed);
    float* scales = squares + PARTS * ROWS;
    const u32 full = shared_at(NORM ? scales + ROWS : squares), empty = full + STAGES * 8, there = empty + STAGES * 8;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_start(full + stage * 8, 1);
            barrier_start(empty + stage * 8, GROUPS * 4);
        }
        barrier_start(there, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    // Here and not when x is there, which was measured: 3.68 against 3.80 ms a decoding step.
    let_next_start();

    if (warp == GROUPS * 4) {
        if (lane == 0) {
            word once, again;
            asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
            asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(again));
            const int outputs[3] = {outputs0, outputs1, outputs2}, steps = count * TILES;
            int column = begin * 64, index = 0, slot = 0;
            const auto weights_into = [&](u32 stage, u32 barrier) {
                const Tile tile = tile_at(outputs, group, index);
                barrier_expect(barrier, index == 0 ? STAGE_BYTES : STAGE_BYTES - LOW_BYTES);
                copy(stage, tile.set == 0 ? &w0 : tile.set == 1 ? &w1 : &w2, column, tile.first, barrier, once);
                if (LOW && index == 0)
                    for (int set = 0; set * rank < LOW; set++)
                        copy(stage + LOW_AT + set * rank * 128, set == 0 ? &a0 : set == 1 ? &a1 : &a2, column, 0, barrier,
                             again);
            };
            const auto onwards = [&]() {
                if (++index == TILES) {
                    index = 0;
                    column += 64;
                }
            };
            const int before = min(STAGES, steps);
            for (int s = 0; s < before; s++) {
                weights_into(ring + s * STAGE_BYTES, full + s * 8);
                onwards();
            }

            // Everything before this line touches only what no kernel writes.
            wait_for_previous();
            asm volatile("fence.proxy.async.global;" ::: "memory");
#if NORM
            barrier_expect(there, count * ROWS_BYTES);
            for (int i = 0; i < count; i++) copy(rows_at + i * ROWS_BYTES, &x, (begin + i) * 64, 0, there, again);
#else
            for (int s = 0; s < before; s++)
                copy(ring + s * STAGE_BYTES + TILE_BYTES, &x, (begin + s / TILES) * 64, 0, full + s * 8, again);
#endif
            u32 parity = 0;
            for (int s = before; s < steps; s++) {
                barrier_wait(empty + slot * 8, parity);
                const u32 stage = ring + slot * STAGE_BYTES, barrier = full + slot * 8;
                weights_into(stage, barrier);
#if !NORM
                copy(stage + TILE_BYTES, &x, column, 0, barrier, again);
#endif
                onwards();
                if (++slot == STAGES) {
                    slot = 0;
                    parity ^= 1;
                }
            }
        }
        __syncwarp();
#if NORM
        // The rows' r, while the others still multiply: every block's sums of squares are there.
        cluster_arrive();
        cluster_wait();
        if (lane < ROWS) {
            float sum = 0.0f;
#pragma unroll
            for (int block = 0; block < SPLIT; block++)
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    float more;
                    peer_load(more, peer(shared_at(squares + part * ROWS + lane), block));
                    sum += more;
                }
            scales[lane] = rsqrtf(sum / width + eps);
        }
#endif
    }

    // A warp finishes sixteen outputs of eight rows at a time: v[0], v[1] belong to output g and rows 2t, 2t + 1, v[2],
    // v[3] to output g + 8.
    const int g = lane / 4, t = lane % 4;
    const Weights weights = {{outputs0, outputs1, outputs2}, {out0, out1, out2}, {b0, b1, b2}};
    const int strips = (HEIGHT + 15) / 16, units = (GATED ? TILES / 2 : TILES) * strips * COLUMNS;
    const int stride = SPLIT * (GROUPS * 4 + 1);
    int unit = order * (GROUPS * 4 + 1) + warp;
    const auto unit_at = [&](int unit) {
        Unit u;
        u.column = unit % COLUMNS, u.strip = unit / COLUMNS % strips, u.index = unit / COLUMNS / strips;
        u.tile = tile_at(weights.outputs, group, u.index);
        u.outputs = pick(weights.outputs, u.tile.set);
        u.output = u.tile.first + u.strip * 16 + g;
        const int row = u.column * 8 + 2 * t;
        u.at = (i64)row * u.outputs + u.output;
#pragma unroll
        for (int n = 0; n < 4; n++)
            u.there[n] = unit < units && u.strip * 16 + g + n / 2 * 8 < HEIGHT && u.output + n / 2 * 8 < u.outputs &&
                         row + n % 2 < rows;
        return u;
    };
    const auto onto = [&](const Unit& u, float (&v)[4]) {
#pragma unroll
        for (int n = 0; n < 4; n++) v[n] = u.there[n] ? fresh(base + u.at + n / 2 * 8 + n % 2 * u.outputs) : 0.0f;
    };
    const auto sums_at = [&](int index, int strip, int column) {
        return ring + (((index * STRIPS + strip) * COLUMNS + column) * 32 + lane) * 16;
    };
    // The adapters' sums and `low` lie behind those of the tiles.
    const u32 low_sums = ring + TILES * STRIPS * COLUMNS * 512, low = low_sums + LOW_SLICES * 4 * COLUMNS * 512;
    float c[TILES * SLICES + LOW_EACH][COLUMNS][4];
#pragma unroll
    for (int i = 0; i < TILES * SLICES + LOW_EACH; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int n = 0; n < 4; n++) c[i][j][n] = 0.0f;
#if LOW
    // Rows g and g + 8 of the second half of the adapter of a tile, null where there are none.
    const auto second_of = [&](const Unit& u, int index, const bf16* (&b)[2]) {
        const bf16* whole = pick(weights.b, GATED ? index >= TILES / 2 : u.tile.set);
        const int at = u.strip * 16 + g;
        b[0] = whole && at < HEIGHT && u.output < u.outputs ? whole + (i64)u.output * rank : 0;
        b[1] = whole && at + 8 < HEIGHT && u.output + 8 < u.outputs ? whole + (i64)(u.output + 8) * rank : 0;
    };
#endif
    float below[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (base) {
        // Asked for now, so that it is there when it is wanted.
        wait_for_previous();
        onto(unit_at(unit), below);
    }
    if (warp < GROUPS * 4) {
        const int team = warp / 4;
#if NORM
        // x: a thread takes every eighth piece of eight numbers of a row.
        float* scale = reinterpret_cast<float*>(memory + STAGES * STAGE_BYTES + count * ROWS_BYTES);
        for (int i = threadIdx.x; i < count * 64; i += WORKERS) scale[i] = norm[begin * 64 + i];
        asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory");
        const int piece = threadIdx.x % 8, place = threadIdx.x / 8, part = place / SIDE;
        barrier_wait(there, 0);
        if (part < PARTS) {
            for (int row = place % SIDE; row < ROWS; row += SIDE) {
                const u32 to = rows_at + row * 128 + (piece ^ row % 8) * 16;
                float sum = 0.0f;
#pragma unroll 2
                for (int i = part; i < count; i += PARTS) {
                    const Eight by = load8(scale + i * 64 + piece * 8);
                    uint4 v = shared_load(to + i * ROWS_BYTES);
                    u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        float first = __uint_as_float(words[j] << 16), second = __uint_as_float(words[j] & 0xffff0000u);
                        sum += first * first + second * second;
                        words[j] = pack(first * by.x[2 * j], second * by.x[2 * j + 1]);
                    }
                    shared_store(to + i * ROWS_BYTES, make_uint4(words[0], words[1], words[2], words[3]));
                }
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                sum += __shfl_xor_sync(0xffffffffu, sum, 4);
                if (piece == 0) squares[part * ROWS + row] = sum;
            }
        }
        // What threads wrote is about to be read by the tensor cores.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        cluster_arrive();
        asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory");
#endif
        int slot = 0, last = STAGES - 1;
        u32 parity = 0;
        for (int i = 0; i < count; i++) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = ring + slot * STAGE_BYTES;
                const word a = describe(stage + team * (SLICES * 8192));
                const word b = describe(NORM ? rows_at + i * ROWS_BYTES : stage + TILE_BYTES);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int s = 0; s < SLICES; s++)
                        multiply_together(c[tile * SLICES + s], a + s * 512 + 2 * k, b + 2 * k);
                if (tile == 0) {
#pragma unroll
                    for (int s = 0; s < LOW_EACH; s++) {
                        // Groups that have no slice of their own repeat the last.
                        const word a = describe(stage + LOW_BEGIN + min(team + s * GROUPS, LOW_SLICES - 1) * 8192);
#pragma unroll
                        for (int k = 0; k < 4; k++) multiply_together(c[TILES * SLICES + s], a + 2 * k, b + 2 * k);
                    }
                }
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (lane == 0 && i + tile > 0) barrier_arrive(empty + last * 8);
                last = slot;
                if (++slot == STAGES) {
                    slot = 0;
                    parity ^= 1;
                }
            }
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        // The sums are there from here on.
#pragma unroll
        for (int i = 0; i < TILES * SLICES + LOW_EACH; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                asm volatile("" : "+f"(c[i][j][0]), "+f"(c[i][j][1]), "+f"(c[i][j][2]), "+f"(c[i][j][3])::"memory");
        // All tiles of the block were read; their place takes its sums.
        asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory");
        const auto put = [&](u32 at, const float (&v)[4]) {
            shared_store(at, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                                        __float_as_uint(v[3])));
        };
#pragma unroll
        for (int i = 0; i < TILES * SLICES; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                put(sums_at(i / SLICES, (team * SLICES + i % SLICES) * 4 + warp % 4, j), c[i][j]);
#pragma unroll
        for (int s = 0; s < LOW_EACH; s++) {
            const int slice = team + s * GROUPS;
            if (slice >= LOW_SLICES) break;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                put(low_sums + (((slice * 4 + warp % 4) * COLUMNS + j) * 32 + lane) * 16, c[TILES * SLICES + s][j]);
        }
    }

#if NORM
    if (warp < GROUPS * 4) cluster_wait();
#endif
    cluster_arrive();
    cluster_wait();
    // What the blocks of the cluster found, added in the order of their ranks.
    const auto add_up = [&](float (&v)[4], u32 at) {
        float more[SPLIT][4];
#pragma unroll
        for (int block = 0; block < SPLIT; block++) peer_load(more[block], peer(at, block));
#pragma unroll
        for (int n = 0; n < 4; n++) {
            v[n] = 0.0f;
#pragma unroll
            for (int block = 0; block < SPLIT; block++) v[n] += more[block][n];
        }
    };
#if LOW
    for (int i = LOW_ROW / 16 * COLUMNS * 32 + threadIdx.x; i < LOW_SLICES * 4 * COLUMNS * 32; i += THREADS) {
        float v[4];
        add_up(v, low_sums + i * 16);
        const int of = i / (COLUMNS * 32) * 16 + i % 32 / 4 - LOW_ROW, row = i / 32 % COLUMNS * 8 + i % 4 * 2;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float x = v[n] * (NORM ? scales[row + n % 2] : 1.0f) * low_scale;
            const int column = of + n / 2 * 8;
            if (column >= 0 && column < LOW) shared_store(low + ((row + n % 2) * LOW + column) * 2, (u16)pack(x, 0.0f));
        }
    }
    __syncthreads();
#endif
    const auto gather = [&](float (&v)[4], const Unit& u, int index) {
#if LOW
        const bf16* b[2];
        second_of(u, index, b);
        // On its way while the sums are.
        Second second = second_at(b[0], b[1], 2 * t, rank);
#endif
        add_up(v, sums_at(index, u.strip, u.column));
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (NORM) v[n] *= scales[u.column * 8 + 2 * t + n % 2];
            // Also where nothing is written: the sums have arrived before this block says that it has read them.
            asm volatile("" : "+f"(v[n])::"memory");
        }
#if LOW
        const int set = GATED ? index >= TILES / 2 : u.tile.set;
        const u32 row = low + ((u.column * 8 + g) * LOW + set * rank) * 2;
        for (int k = 2 * t; k < rank; k += 16) {
            const u32 x0 = shared_word(row + k * 2), x1 = k + 8 < rank ? shared_word(row + k * 2 + 16) : 0;
            multiply(v, second.words[0], second.words[1], second.words[2], second.words[3], x0, x1);
            second = second_at(b[0], b[1], k + 16, rank);
        }
#endif
    };
#pragma unroll 1
    for (; unit < units; unit += stride) {
        const Unit u = unit_at(unit);
        if (u.tile.first >= u.outputs) break;
        float v[4];
        gather(v, u, u.index);
#if GATED
        float up[4];
        gather(up, u, u.index + TILES / 2);
#pragma unroll
        for (int n = 0; n < 4; n++) v[n] *= sigmoid(v[n]) * up[n];
#endif
        bf16* out = pick(weights.out, u.tile.set);
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (u.there[n]) out[u.at + n / 2 * 8 + n % 2 * u.outputs] = narrow<bf16>(v[n] + below[n]);
        if (base) onto(unit_at(unit + stride), below);
    }
    // Nobody leaves while others may read its sums.
    cluster_arrive_relaxed();
    cluster_wait();
}

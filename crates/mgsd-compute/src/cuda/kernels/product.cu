// Large products: out = x Wᵀ, or x W, for thousands of rows of x, bfloat16, compute capability 9.0 (its tensor cores and
// its copy engine), and in the same pass what would otherwise read and write the result again: low-rank adapters, a
// matrix that is added, several products whose sum is wanted, several of one x, the gated product silu(x Wgᵀ) * (x Wuᵀ),
// and the norm and rotation of heads.
//
// A cluster of two blocks owns tiles of 256 rows by WIDE columns, one after another; 128 rows are a block's. One thread
// asks the copy engine for pieces of 64 along the sum into a ring in shared memory; two groups of four warps, 64 rows
// each, wait for a piece, multiply it and give its place back. Each block asks for half of the weights, which go to both.
// The second half of an adapter is one more piece of the sum, with zeros where it has no columns. Results wait in shared
// memory until the copy engine has taken them, which leaves out what lies outside; the next tile is being multiplied
// meanwhile. The order of every sum is fixed, so that bits repeat.
//
// Gate and up are two halves of a tile. They are left in shared memory as bfloat16, as if they had been stored, and warps
// that have nothing else to do make the gated product of them: in the groups that multiply it would stop the tensor
// cores for a tenth of the time. Heads are left to those warps likewise.

#if HEADS
// Norms and turns the heads of 64 rows in their panels, from `row` on; of the matrix's `rows` the last stands for those
// that are outside. 96 threads, the `me`th of them.
__device__ __forceinline__ void turn_heads(unsigned char* panels, const float* weight, const float* cos, const float* sin,
                                           int me, int row, int rows, float eps) {
    const int lane = me % LANES, at = lane * 4, last = rows - 1;
    const Fours scale = load_fours(weight, at, true);
    // Asked for a round before they are used.
    Fours next = angles_of(cos, sin, min(row + me / LANES, last), at, true);
    for (int r = me / LANES; r < 64; r += 96 / LANES) {
        const Fours angles = next;
        next = angles_of(cos, sin, min(row + r + 96 / LANES, last), at, true);
        // A panel has one half of a head; its pieces of 16 bytes are exchanged.
        unsigned char* here = panels + r * 128 + (lane / 2 ^ r % 8) * 16 + lane % 2 * 8;
#pragma unroll
        for (int panel = 0; panel < PANELS; panel += 2, here += 2 * PANEL_BYTES) {
            u16 *first = (u16*)here, *second = (u16*)(here + PANEL_BYTES);
            Fours x;
            load_four(x.a, first);
            load_four(x.b, second);
            const Fours y = norm_rotate(x, scale, angles, eps);
            store_four(first, y.a);
            store_four(second, y.b);
        }
    }
}
#endif

// x[i] [rows, 64 * chunks_i], w[i] [outputs, 64 * chunks_i] (ACROSS: the other way round), out = Σ x[i] w[i]ᵀ; with GATED x[0],
// w[0], w[1], and out[1], out[2] receive the halves; with EACH out[i] = x[0] w[i]ᵀ, and chunks1, chunks2 are where in a row
// of tiles those of w[1] and w[2] begin; with HEADS out[0], out[1] are normed and turned, raw[i] is what they were, and
// what head_norm.cuh wants is there. low[i] [rows, rank], b[i] [outputs, rank] (ACROSS: the other way
// round). Boxes of 64 columns by 128 rows (x, low), RESULTS / 2 (w, b) or, ACROSS, 32; PANEL by 64 (out, base). Tiles: `down`
// by `along`. At least two chunks. A grid of clusters, as many as run at the same time or fewer; block THREADS. Shared
// memory: the ring, RESULT_BYTES for each group, 2 * STAGES + 6 barriers.
extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 1) product(
    const __grid_constant__ Maps maps, int chunks0, int chunks1, int chunks2, int down, int along, int group
#if HEADS
    , const float* q_weight, const float* k_weight, const float* cos, const float* sin, int rows, float eps
#endif
) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const u32 ring = shared_at(memory), results = ring + STAGES * STAGE_BYTES;
    const u32 full = results + 2 * RESULT_BYTES, empty = full + STAGES * 8;
    // Of each group: what is added is there; what other warps are to work on is there, and its place is free again.
    const u32 bases = empty + STAGES * 8, left = bases + 16, free = left + 16;
    const int team = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int order = blockIdx.x % BLOCKS, first = blockIdx.x / BLOCKS, step = gridDim.x / BLOCKS, tiles = down * along;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_start(full + stage * 8, 1);
            barrier_start(empty + stage * 8, BLOCKS * WORKERS / 32);
        }
        for (int team = 0; team < 2; team++) {
            barrier_start(bases + team * 8, 1);
            barrier_start(left + team * 8, 4);
            barrier_start(free + team * 8, 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        show_to_engine();
    }
    cluster_sync();

    int slot = 0;
    u32 parity = 0;
    const auto onwards = [&]() {
        if (++slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    };
    if (team == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(HEADS ? 88 : GATED ? 72 : 40));
        if (threadIdx.x == WORKERS) {
            for (int index = first; index < tiles; index += step) {
                const Place place = place_of(index, down, along, group);
                const Part part = part_of(place, chunks1, chunks2);
                const int row = (place.row * BLOCKS + order) * TALL, column = part.column;
                // One piece. With GATED `other` are the weights of the second half, from row `other_at`.
                const auto ask = [&](const Map* x, const Map* w, const Map* other, int k, int w_at, int other_at) {
                    barrier_wait(empty + slot * 8, parity ^ 1);
                    const u32 to = ring + slot * STAGE_BYTES, barrier = full + slot * 8;
                    barrier_expect(barrier, STAGE_BYTES);
                    copy(to, x, k, row, barrier);
#if ACROSS
#pragma unroll
                    for (int panel = 0; panel < W_PANELS; panel++)
                        copy_to_both(to + X_BYTES + panel * 8192 + order * 4096, w, w_at + panel * 64, k + order * 32, barrier);
#else
                    const int share = order * (RESULTS / BLOCKS);
                    copy_to_both(to + X_BYTES + share * 128, w, k, w_at + share, barrier);
                    if (GATED) copy_to_both(to + X_BYTES + (RESULTS + share) * 128, other, k, other_at + share, barrier);
#endif
                    onwards();
                };
                for (int i = 0; i < chunks0; i++) ask(&maps.x[0], &maps.w[part.set], &maps.w[1], i * 64, column, column);
#if EACH
                if (LOWS) ask(&maps.low[part.set], &maps.b[part.set], 0, 0, column, 0);
#else
                for (int i = 0; i < chunks1; i++) ask(&maps.x[1], &maps.w[1], 0, i * 64, column, 0);
                for (int i = 0; i < chunks2; i++) ask(&maps.x[2], &maps.w[2], 0, i * 64, column, 0);
                // Rows that are outside are zeros: the other half gets nothing from this adapter.
                for (int i = 0; i < LOWS; i++)
                    ask(&maps.low[i], &maps.b[i], &maps.b[i], 0, GATED && i == 1 ? -RESULTS : column,
                        i == 0 ? -RESULTS : column);
#endif
            }
        }
#if OTHERS_LEAVE
        const int me = threadIdx.x - WORKERS - 32;
        u32 turn = 0;
        if (me >= 0) {
            for (int index = first; index < tiles; index += step, turn++) {
                const Place place = place_of(index, down, along, group);
                const Part part = part_of(place, chunks1, chunks2);
                for (int team = 0; team < 2; team++) {
                    const int row = (place.row * BLOCKS + order) * TALL + team * 64;
                    const u32 at = results + team * RESULT_BYTES;
                    // Some of a tile's panels, to where their columns begin. By the first thread, the others go on.
                    const auto leaves = [&](const Map* out, int begin) {
                        if (me != 0) return;
#pragma unroll
                        for (int panel = 0; panel < RESULT_PANELS; panel++)
                            copy_out(out, part.column + panel * PANEL, row, at + (begin + panel) * PANEL_BYTES);
                        step_ends();
                    };
                    const auto read = [&]() {
                        if (me == 0) wait_until_read();
                    };
                    barrier_wait(left + team * 8, turn & 1);
#if GATED
                    if (GATED == 2) {
                        leaves(&maps.out[1], 0);
                        leaves(&maps.out[2], RESULT_PANELS);
                        read();
                        join<96>(3);
                    }
                    // In the place of the gates; all three lie alike.
                    const u32 ups = at + RESULT_PANELS * PANEL_BYTES;
                    for (int i = me * 16; i < RESULT_PANELS * PANEL_BYTES; i += 96 * 16) {
                        const uint4 gate = shared_load(at + i), up = shared_load(ups + i);
                        shared_store(at + i, make_uint4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z),
                                                        gated(gate.w, up.w)));
                    }
                    show_to_engine();
                    join<96>(3);
#else
                    if (part.set < 2) {
                        if (HEADS == 2) {
                            leaves(&maps.raw[part.set], 0);
                            read();
                            join<96>(3);
                        }
                        const float* weight = part.set == 0 ? q_weight : k_weight;
                        turn_heads(memory + (at - ring), weight, cos, sin, me, row, rows, eps);
                        show_to_engine();
                        join<96>(3);
                    }
#endif
                    leaves(&maps.out[GATED ? 0 : part.set], 0);
                    read();
                    if (me == 0) barrier_arrive(free + team * 8);
                    __syncwarp();
                }
            }
            if (me == 0) wait_until_written();
        }
#endif
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(HEADS ? 208 : GATED ? 216 : 232));
        const int g = lane / 4, t = lane % 4, chunks = GATED || EACH ? chunks0 : chunks0 + chunks1 + chunks2;
        // One thread of a group speaks to the copy engine.
        const bool speaks = threadIdx.x % 128 == 0;
        const u32 panels = results + team * RESULT_BYTES;
        // Where a thread's row g lies in a panel, and by what its pieces of 16 bytes are exchanged; row g + 8 is alike.
        const u32 mine = panels + (warp * 16 + g) * PANEL * 2 + t * 4;
        const int exchanged = PANEL == 64 ? g : g / 2;
        u32 turn = 0;
        // To both blocks, since the piece came from both.
        const auto give_back = [&](int slot) {
            __syncwarp();
            if (lane < BLOCKS) barrier_arrive_there(peer(empty + slot * 8, lane));
        };
        for (int index = first; index < tiles; index += step, turn++) {
            [[maybe_unused]] const Place place = place_of(index, down, along, group);
            [[maybe_unused]] const Part part = part_of(place, chunks1, chunks2);
            [[maybe_unused]] const int row = (place.row * BLOCKS + order) * TALL + team * 64;
            [[maybe_unused]] const int column = part.column;
            float c[WIDE / 2];
            int last = 0;
            for (int i = 0; i < chunks; i++) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = ring + slot * STAGE_BYTES;
                const word x = by_rows(stage + team * 8192), w = ACROSS ? by_columns(stage + X_BYTES) : by_rows(stage + X_BYTES);
                begin_products();
#pragma unroll
                for (int k = 0; k < 4; k++) multiply(c, x + 2 * k, w + STEP * k, i + k > 0);
                products_so_far();
                wait_products<1>();
                if (i > 0) give_back(last);
                last = slot;
                onwards();
#if BASE
                // The tile before has left by now.
                if (i == 1 && speaks) {
                    wait_until_read();
                    barrier_expect(bases + team * 8, RESULT_BYTES);
#pragma unroll
                    for (int panel = 0; panel < PANELS; panel++)
                        copy(panels + panel * PANEL_BYTES, &maps.base, column + panel * PANEL, row, bases + team * 8);
                }
                __syncwarp();
#endif
            }
#pragma unroll
            for (int i = 0; i < LOWS; i++) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = ring + slot * STAGE_BYTES;
                const word x = by_rows(stage + team * 8192), w = ACROSS ? by_columns(stage + X_BYTES) : by_rows(stage + X_BYTES);
                begin_products();
#pragma unroll
                for (int k = 0; k < STEPS; k++) multiply(c, x + 2 * k, w + STEP * k, true);
                products_so_far();
                wait_products<1>();
                give_back(last);
                last = slot;
                onwards();
            }
            wait_products<0>();
            // The sums are there from here on.
#pragma unroll
            for (int i = 0; i < WIDE / 2; i++) asm volatile("" : "+f"(c[i])::"memory");
            give_back(last);

#if BASE
            barrier_wait(bases + team * 8, turn & 1);
#elif OTHERS_LEAVE
            barrier_wait(free + team * 8, turn & 1 ^ 1);
#else
            if (speaks) wait_until_read();
            join<128>(team + 1);
#endif
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) {
#pragma unroll
                for (int piece = 0; piece < PANEL / 8; piece++) {
                    const u32 to = mine + panel * PANEL_BYTES + (piece ^ exchanged) * 16;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int at = (panel * (PANEL / 8) + piece) * 4 + half * 2;
#if BASE
                        const u32 below = shared_word(to + half * 16 * PANEL);
                        c[at] += first_of(below), c[at + 1] += second_of(below);
#endif
                        shared_store(to + half * 16 * PANEL, pack(c[at], c[at + 1]));
                    }
                }
            }
            show_to_engine();
#if OTHERS_LEAVE
            __syncwarp();
            if (lane == 0) barrier_arrive(left + team * 8);
#else
            join<128>(team + 1);
            if (speaks) {
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++)
                    copy_out(&maps.out[part.set], column + panel * PANEL, row, panels + panel * PANEL_BYTES);
                step_ends();
            }
            __syncwarp();
#endif
        }
        if (!OTHERS_LEAVE && speaks) wait_until_written();
    }
    // Nobody leaves while the other block may still write into its shared memory.
    __syncwarp();
    cluster_sync();
}

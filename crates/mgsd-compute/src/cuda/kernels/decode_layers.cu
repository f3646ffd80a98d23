// All layers of a decoding step in one kernel: up to 32 rows, bfloat16, compute capability 9.0, heads of 128 numbers.
//
// Time goes into reading weights, keys and values, and all of these are known before the step begins. So one warp of every
// block asks the copy engine for them from the first layer to the last, in the order in which they are used, as far ahead
// as its ring in shared memory has slots, and never waits for a result. The others wait for what the blocks found before,
// multiply what has arrived and give the slots back. Memory is busy while results go from block to block.
//
// Every block is on a multiprocessor of its own and stays to the end. A layer has five phases: q, k, v; attention; o; gate
// and up; down. Between two of them all blocks wait for each other at a counter in memory.
//
// Products. A unit is TILES tiles of HEIGHT rows of weights by some of their columns: SPLIT units share the columns of the
// same tiles, write their sums to memory and add up a part of them each, in the order of the units, so that bits repeat. A
// place for sums holds nothing but zeros until they are there and again once they are read, so that nobody has to say
// that they are: numbers are written with all their bits turned round, which gives a zero for none that occurs. A slot holds PER tiles by 64 columns, and with the first tiles of a unit the rows of the adapters' first
// halves: every unit multiplies all of those, and what they give by the second halves of its tiles. x comes through a
// ring of its own, and not by the copy engine, whose requests wait for those in front of them.
//
// Attention. The keys and values of all rows and heads are cut into pieces of KEYS positions, and each block takes as many
// of them one after another. Where blocks share a head, the block that has its first pieces joins what they found: for it
// this head is the last, for the others the first.
//
// Set when compiling: ROWS; BLOCKS; SLOTS and X_SLOTS of the rings; AHEAD, slots that are under way at a time; HIDDEN, Q_OUT, KV_OUT, INTER; RANK of the adapters, 0
// without; for QKV, O, GATE_UP and DOWN _HEIGHT, _PER, _TILES, _SPLIT. HEIGHT is a multiple of 8, and of 16 where PER > 1;
// a slot has 192 rows, adapters included.

// Groups of four warps that multiply; a slot has 64 rows for each.
#define TEAMS 3
#define WARPS (TEAMS * 4)
#define WORKERS (WARPS * 32)
#define THREADS (WORKERS + 128)
#define COLUMNS (ROWS / 8)
#define SLOT (TEAMS * 64 * 128)
#define X_SLOT (ROWS * 128)
#define HEAD 128
#define KEYS 48
#define BOX (KEYS * 128)
#define KV_HEADS (KV_OUT / HEAD)
#define GROUPED (Q_OUT / KV_OUT)
// From one query to the next in shared memory, in bytes.
#define QUERY (HEAD * 2 + 16)
// What attention finds, in shared memory: behind the queries, for each warp and head.
#define FOUND (16 * QUERY)
#define FOUND_STATE (FOUND + WARPS * GROUPED * HEAD * 4)
#define LOG2_E 1.4426950408889634f

__device__ constexpr int parts_of(int whole, int part) { return (whole + part - 1) / part; }

template <int HEIGHT_, int PER_, int TILES_, int SPLIT_, int WIDTH, int OUT0_, int OUT1_, int SETS_, int FIRST_, bool GATED_,
          bool NORM_>
struct Shape {
    static constexpr int HEIGHT = HEIGHT_, PER = PER_, TILES = TILES_, SPLIT = SPLIT_, CHUNKS = WIDTH / 64, OUT0 = OUT0_,
                         OUT1 = OUT1_, SETS = SETS_, FIRST = FIRST_, STEPS = TILES / PER, STRIPS = parts_of(HEIGHT, 16),
                         LOW = RANK * SETS, LOW_AT = PER * HEIGHT;
    static constexpr bool GATED = GATED_, NORM = NORM_;
    static constexpr int ALL = parts_of(OUT0, HEIGHT) + (SETS > 1 ? parts_of(OUT1, HEIGHT) : 0) * (SETS > 2 ? 2 : 1);
    static constexpr int GROUPS = GATED ? parts_of(parts_of(OUT0, HEIGHT), TILES / 2) : parts_of(ALL, TILES);
    static constexpr int UNITS = GROUPS * SPLIT;
    // What a unit's sums take, in numbers, and those of all.
    static constexpr int SUMS = STEPS * WARPS * COLUMNS * 128, ALL_SUMS = UNITS * SUMS;
    static_assert(LOW_AT + LOW <= TEAMS * 64 && UNITS <= BLOCKS && TILES % PER == 0, "");
};

typedef Shape<QKV_HEIGHT, QKV_PER, QKV_TILES, QKV_SPLIT, HIDDEN, Q_OUT, KV_OUT, 3, 0, false, true> Qkv;
typedef Shape<O_HEIGHT, O_PER, O_TILES, O_SPLIT, Q_OUT, HIDDEN, 0, 1, 3, false, false> Output;
typedef Shape<GATE_UP_HEIGHT, GATE_UP_PER, GATE_UP_TILES, GATE_UP_SPLIT, HIDDEN, INTER, INTER, 2, 4, true, true> GateUp;
typedef Shape<DOWN_HEIGHT, DOWN_PER, DOWN_TILES, DOWN_SPLIT, INTER, HIDDEN, 0, 1, 6, false, false> Down;

template <class S> __device__ constexpr int sums_before() {
    return (S::FIRST > 0 ? Qkv::ALL_SUMS : 0) + (S::FIRST > 3 ? Output::ALL_SUMS : 0) + (S::FIRST > 4 ? GateUp::ALL_SUMS : 0);
}

// What is known of a layer before the step: matrices in the order q, k, v, o, gate, up, down, then keys and values.
struct Vectors {
    const float *norm[2], *head_norm[2];
    const bf16* high[7];
    bf16* kept[2];
    u64 unused[3];
};

struct Layer {
    Map weights[7], low[7], cache[2];
    Vectors vectors;
};

struct Step {
    const Layer* layers;
    int count, rows, capacity;
    const bf16* x;
    bf16 *stream, *scaled, *qkv, *attended, *gated;
    float *partial, *squares, *joined;
    u32* counters;
    const u32 *slots, *lengths;
    const float *cos, *sin;
    float eps, scale, low_scale;
};

struct Ring {
    int slot = 0;
    u32 parity = 0;
    template <int SIZE> __device__ __forceinline__ void next() {
        if (++slot == SIZE) slot = 0, parity ^= 1;
    }
};

// A ring that is being filled.
struct Filling {
    Ring ring, landed;
    int sent = 0;
};

// Where things lie in shared memory.
struct Places {
    u32 ring, x, full, empty, x_full, x_empty, scales_there;
    float* scales;
    // Positions of each row that are seen, and whether the last of them is new.
    int *seen, *fresh;
    // Of this layer and the next.
    Vectors* vectors;
    unsigned char* room;
};

__device__ __forceinline__ u32 peek(const u32* counter) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(counter) : "memory");
    return v;
}

__device__ __forceinline__ void raise(u32* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ void wait_until(const u32* counter, u32 value) {
    while ((int)(peek(counter) - value) < 0) {
#ifdef BACKOFF
        __nanosleep(BACKOFF);
#endif
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Four numbers at a place that holds zeros until they are there.
__device__ __forceinline__ void leave(float* at, float a, float b, float c, float d) {
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(~__float_as_uint(a)),
                 "r"(~__float_as_uint(b)), "r"(~__float_as_uint(c)), "r"(~__float_as_uint(d))
                 : "memory");
}

// Numbers that others leave at `places`, waited for by the lanes of a warp together; the places are zero again then.
template <int COUNT> __device__ __forceinline__ void collect(float (&v)[COUNT][4], float* const (&places)[COUNT]) {
    u32 found[COUNT][4], missing = (1u << COUNT) - 1;
    while (missing) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (missing >> i & 1)
                asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(found[i][0]), "=r"(found[i][1]), "=r"(found[i][2]), "=r"(found[i][3])
                             : "l"(places[i])
                             : "memory");
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const bool there = found[i][0] && found[i][1] && found[i][2] && found[i][3];
            if ((missing >> i & 1) && __all_sync(0xffffffffu, there)) missing ^= 1u << i;
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %1, %1, %1};" ::"l"(places[i]), "r"(0) : "memory");
#pragma unroll
        for (int n = 0; n < 4; n++) v[i][n] = __uint_as_float(~found[i][n]);
    }
}

__device__ __forceinline__ void workers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory"); }

// For what threads wrote to shared memory and the tensor cores read, or the copy engine writes to next.
__device__ __forceinline__ void other_way() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The workers of a block are through with a phase.
__device__ __forceinline__ void phase_done(const Step& step) {
    workers_meet();
    if (threadIdx.x == 0) raise(step.counters);
}

// 8 x 8 numbers: a lane has two neighbours of row lane / 4; afterwards of column lane / 4.
__device__ __forceinline__ u32 turn(u32 both) {
    u32 turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(both));
    return turned;
}

__device__ __forceinline__ float first_of(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float second_of(u32 both) { return __uint_as_float(both & 0xffff0000u); }

__device__ __forceinline__ u32 fresh_pair(const bf16* from) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}

// The next slot of the ring of weights, keys and values, when it is free and few enough are under way: what blocks tell each
// other waits in the same queues.
__device__ __forceinline__ u32 next_slot(const Places& at, Filling& filling, int bytes, u32& full) {
    if (filling.sent++ >= AHEAD) {
        barrier_wait(at.full + filling.landed.slot * 8, filling.landed.parity);
        filling.landed.next<SLOTS>();
    }
    const int slot = filling.ring.slot;
    full = at.full + slot * 8;
    barrier_wait(at.empty + slot * 8, filling.ring.parity ^ 1);
    barrier_expect(full, bytes);
    filling.ring.next<SLOTS>();
    return at.ring + slot * SLOT;
}

template <class S> __device__ __forceinline__ Tile tile_of(int group, int index) {
    if (S::GATED) {
        const int half = S::TILES / 2, second = index >= half;
        return {second, (group * half + index - second * half) * S::HEIGHT};
    }
    index += group * S::TILES;
    const int first = parts_of(S::OUT0, S::HEIGHT), second = parts_of(S::OUT1, S::HEIGHT);
    if (S::SETS == 1 || index < first) return {0, index * S::HEIGHT};
    index -= first;
    if (index < second) return {1, index * S::HEIGHT};
    return {2, (index - second) * S::HEIGHT};
}

// The columns that a unit multiplies, times 64.
template <class S> __device__ __forceinline__ int chunk_of(int order) { return S::CHUNKS * order / S::SPLIT; }

// Asks for a unit's weights, as soon as there are slots.
template <class S>
__device__ __forceinline__ void send_weights(
    const Layer& layer, const Places& at, Filling& filling, word once, word again) {
    if ((int)blockIdx.x >= S::UNITS) return;
    const int order = blockIdx.x % S::SPLIT, group = blockIdx.x / S::SPLIT, end = chunk_of<S>(order + 1);
    for (int chunk = chunk_of<S>(order); chunk < end; chunk++) {
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            u32 full;
            const u32 slot = next_slot(at, filling, (S::LOW_AT + (s == 0 ? S::LOW : 0)) * 128, full);
#pragma unroll
            for (int i = 0; i < S::PER; i++) {
                const Tile tile = tile_of<S>(group, s * S::PER + i);
                const Map* map = layer.weights + S::FIRST + tile.set;
                copy(slot + i * S::HEIGHT * 128, map, chunk * 64, tile.first, full, once);
            }
            if (s == 0)
#pragma unroll
                for (int set = 0; set * RANK < S::LOW; set++)
                    copy(slot + (S::LOW_AT + set * RANK) * 128, layer.low + S::FIRST + set, chunk * 64, 0, full, again);
        }
    }
}

// The pieces of keys and values that a block takes: those from `begin` to `end` of all, row by row and head by head.
struct Walk {
    int row, head, piece, pieces, at, end;
};

// The blocks that take pieces, of `total` pieces.
__device__ __forceinline__ int takers_of(int total) { return min(BLOCKS, total); }

// The block that takes piece `index`.
__device__ __forceinline__ int taker_of(int index, int total) {
    return (int)(((i64)(index + 1) * takers_of(total) - 1) / total);
}

__device__ __forceinline__ int total_of(const Places& at) {
    int total = 0;
    for (int row = 0; row < ROWS; row++) total += parts_of(at.seen[row], KEYS);
    return total * KV_HEADS;
}

__device__ __forceinline__ Walk begin_walk(const Places& at, int total) {
    Walk walk = {0, 0, 0, 0, 0, 0};
    const int takers = takers_of(total);
    if ((int)blockIdx.x >= takers) return walk;
    walk.at = (i64)total * blockIdx.x / takers, walk.end = (i64)total * (blockIdx.x + 1) / takers;
    int left = walk.at;
    while (true) {
        walk.pieces = parts_of(at.seen[walk.row], KEYS);
        if (left < walk.pieces * KV_HEADS) break;
        left -= walk.pieces * KV_HEADS;
        walk.row++;
    }
    walk.head = left / walk.pieces, walk.piece = left % walk.pieces;
    return walk;
}

// How many of the current head's pieces are the block's.
__device__ __forceinline__ int here_of(const Walk& walk) { return min(walk.pieces - walk.piece, walk.end - walk.at); }

__device__ __forceinline__ void next_head(Walk& walk, const Places& at) {
    walk.at += here_of(walk);
    walk.piece = 0;
    if (walk.at >= walk.end || ++walk.head < KV_HEADS) return;
    walk.head = 0;
    do walk.pieces = parts_of(at.seen[++walk.row], KEYS);
    while (walk.pieces == 0);
}

__device__ __forceinline__ void send_keys(
    const Layer& layer, const Step& step, const Places& at, Walk walk, Filling& filling, word once) {
    while (walk.at < walk.end) {
        const int here = here_of(walk), first = (step.slots[walk.row] * KV_HEADS + walk.head) * step.capacity;
        for (int i = 0; i < here; i++) {
            const int row = first + (walk.piece + i) * KEYS;
            u32 full;
            const u32 slot = next_slot(at, filling, 4 * BOX, full);
#pragma unroll
            for (int box = 0; box < 4; box++) copy(slot + box * BOX, layer.cache + box / 2, box % 2 * 64, row, full, once);
        }
        next_head(walk, at);
    }
}

// Asks for a unit's x [rows, CHUNKS * 64] when it is there; the lanes of a warp together.
template <class S>
__device__ __forceinline__ void send_x(const bf16* x, const Step& step, const Places& at, Ring& ring, u32 done) {
    if ((int)blockIdx.x >= S::UNITS) return;
    const int order = blockIdx.x % S::SPLIT, end = chunk_of<S>(order + 1), lane = threadIdx.x % 32;
    if (lane == 0) wait_until(step.counters, done);
    __syncwarp();
    // Pieces of sixteen bytes, exchanged as the tensor cores want them; TOGETHER chunks are shown to those at a time, since
    // that takes long. A chunk's slot comes free when the next chunk has been read, so that a third of such lots must not
    // need the slot of the last chunk that was shown.
    constexpr int TOGETHER = 3;
    static_assert(3 * TOGETHER - X_SLOTS < TOGETHER, "");
    const int row = lane / 8, piece = lane % 8;
    const bf16* from = x + (i64)row * (S::CHUNKS * 64) + chunk_of<S>(order) * 64 + piece * 8;
    Ring shown = ring;
    const auto show = [&](int count) {
        other_way();
        __syncwarp();
        for (int i = 0; i < count; i++) {
            if (lane == 0) barrier_arrive(at.x_full + shown.slot * 8);
            shown.next<X_SLOTS>();
        }
    };
    int before = 0;
    for (int chunk = chunk_of<S>(order); chunk < end;) {
        const int count = min(TOGETHER, end - chunk);
        for (int j = 0; j < count; j++, chunk++, from += 64) {
            const u32 to = at.x + ring.slot * X_SLOT + row * 128;
            barrier_wait(at.x_empty + ring.slot * 8, ring.parity ^ 1);
#pragma unroll
            for (int i = 0; i < ROWS / 4; i++)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i * 512 +
                                                                                  (piece ^ (row + i * 4) % 8) * 16),
                             "l"(row + i * 4 < step.rows ? from + (i64)i * 4 * (S::CHUNKS * 64) : x),
                             "r"(row + i * 4 < step.rows ? 16 : 0)
                             : "memory");
            ring.next<X_SLOTS>();
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (before > 0) {
            asm volatile("cp.async.wait_group 1;" ::: "memory");
            show(before);
        }
        before = count;
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    show(before);
}

// r of every row, from the sums of squares of `strips` strips. A lane adds up four rows of some strips.
__device__ __forceinline__ void send_scales(const Step& step, const Places& at, int strips, u32 done) {
    constexpr int QUADS = ROWS / 4;
    const int lane = threadIdx.x % 32, quad = lane % QUADS;
    if (lane == 0) wait_until(step.counters, done);
    __syncwarp();
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 10
    for (int strip = lane / QUADS; strip < strips; strip += 32 / QUADS) {
        const float4 v = __ldcg((const float4*)(step.squares + strip * ROWS + quad * 4));
        sums[0] += v.x, sums[1] += v.y, sums[2] += v.z, sums[3] += v.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int away = QUADS; away < 32; away *= 2) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], away);
        if (lane < QUADS) at.scales[quad * 4 + i] = rsqrtf(sums[i] / HIDDEN + step.eps);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(at.scales_there);
}

// A unit's product: its sums to memory, a part of those of its group to where they go.
template <class S>
__device__ __forceinline__ void product(
    const Vectors& vectors, const float* next_norm, const Step& step, const Places& at, Ring& ring, Ring& x_ring,
    u32& scales_parity, u32 done) {
    if ((int)blockIdx.x >= S::UNITS) {
        // Nobody counts for a phase before all have counted for the one in front of it.
        if (threadIdx.x == 0) wait_until(step.counters, done);
        return;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, team = warp / 4;
    const int order = blockIdx.x % S::SPLIT, group = blockIdx.x / S::SPLIT;
    float c[S::STEPS][COLUMNS][4];
#pragma unroll
    for (int s = 0; s < S::STEPS; s++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int n = 0; n < 4; n++) c[s][j][n] = 0.0f;
    // The sixteen outputs of a step that are this warp's.
    constexpr int OF_TILE = S::PER > 1 ? S::HEIGHT / 16 : WARPS;
    const auto mine_of = [&](int s, int& set) {
        const Tile tile = tile_of<S>(group, s * S::PER + warp / OF_TILE);
        const int strip = warp % OF_TILE, output = tile.first + strip * 16;
        set = tile.set;
        const bool some = warp < OF_TILE * S::PER && strip < S::STRIPS && output < (set == 0 ? S::OUT0 : S::OUT1);
        return some ? output : -1;
    };
    const auto of_adapter = [&](int s, int k) {
        int set;
        const int output = mine_of(s, set);
        const bf16* b = output >= 0 ? vectors.high[S::FIRST + set] : 0;
        const bool two = warp % OF_TILE * 16 + 8 < S::HEIGHT && output + 8 < (set == 0 ? S::OUT0 : S::OUT1);
        return second_at(b ? b + (i64)(output + g) * RANK : 0, b && two ? b + (i64)(output + g + 8) * RANK : 0, k + 2 * t, RANK);
    };
    Second second[S::STEPS];
    if (S::LOW > 0)
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) second[s] = of_adapter(s, 0);
    // What is added to a warp's sums, asked for early: sixteen outputs of eight rows each, and the next norm's weights.
    constexpr int SHOWN = S::GATED ? S::TILES / 2 : S::TILES, ITEMS = SHOWN * S::STRIPS * COLUMNS;
    u32 base[2] = {0, 0};
    float weights[2] = {0.0f, 0.0f};
    const auto ask_base = [&](int item) {
        const int strip = item / COLUMNS % S::STRIPS, index = item / COLUMNS / S::STRIPS, row = item % COLUMNS * 8 + g;
        const int output = tile_of<S>(group, index).first + strip * 16;
        const bool one = item < ITEMS && output < S::OUT0, two = one && strip * 16 + 8 < S::HEIGHT && output + 8 < S::OUT0;
        const bf16* from = step.stream + (i64)row * HIDDEN + output + 2 * t;
        base[0] = one && row < step.rows ? fresh_pair(from) : 0;
        base[1] = two && row < step.rows ? fresh_pair(from + 8) : 0;
        weights[0] = one && next_norm ? next_norm[output + g] : 0.0f;
        weights[1] = two && next_norm ? next_norm[output + g + 8] : 0.0f;
    };
    if (S::SETS == 1) ask_base(order * WARPS + warp);
    const int count = chunk_of<S>(order + 1) - chunk_of<S>(order);
    int last = 0, last_x = 0;
    for (int i = 0; i < count; i++) {
        barrier_wait(at.x_full + x_ring.slot * 8, x_ring.parity);
        const word x = describe(at.x + x_ring.slot * X_SLOT);
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            barrier_wait(at.full + ring.slot * 8, ring.parity);
            const word w = describe(at.ring + ring.slot * SLOT + team * 8192);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_together(c[s], w + 2 * k, x + 2 * k);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (lane == 0 && i + s > 0) {
                barrier_arrive(at.empty + last * 8);
                if (s == 0) barrier_arrive(at.x_empty + last_x * 8);
            }
            last = ring.slot;
            ring.next<SLOTS>();
        }
        last_x = x_ring.slot;
        x_ring.next<X_SLOTS>();
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int s = 0; s < S::STEPS; s++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            asm volatile("" : "+f"(c[s][j][0]), "+f"(c[s][j][1]), "+f"(c[s][j][2]), "+f"(c[s][j][3])::"memory");
    if (lane == 0) {
        barrier_arrive(at.empty + last * 8);
        barrier_arrive(at.x_empty + last_x * 8);
    }

    if (S::LOW > 0) {
        const u32 low = at.x;
        // Nobody reads x any more.
        workers_meet();
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int of = warp * 16 + g + n / 2 * 8 - S::LOW_AT, row = j * 8 + 2 * t + n % 2;
                if (of >= 0 && of < S::LOW) shared_store(low + (row * S::LOW + of) * 2, (u16)pack(c[0][j][n] * step.low_scale, 0.0f));
            }
        workers_meet();
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            int set;
            if (mine_of(s, set) < 0) continue;
            for (int k = 0; k < RANK; k += 16) {
                if (k > 0) second[s] = of_adapter(s, k);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    const u32 row = low + ((j * 8 + g) * S::LOW + set * RANK + k + 2 * t) * 2;
                    const u32 x0 = shared_word(row), x1 = k + 8 < RANK ? shared_word(row + 16) : 0;
                    const u32(&w)[4] = second[s].words;
                    multiply(c[s][j], w[0], w[1], w[2], w[3], x0, x1);
                }
            }
        }
    }

    // Behind those of all units: the sums of one after another.
    float* const sums = step.partial + sums_before<S>() + (i64)group * S::SPLIT * S::SUMS + lane * 4;
    const auto place_of = [&](int s, int strip, int column) { return ((s * WARPS + strip) * COLUMNS + column) * 128; };
#pragma unroll
    for (int s = 0; s < S::STEPS; s++) {
        // What nobody reads is not written.
        int set;
        if (mine_of(s, set) < 0) continue;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            leave(sums + order * S::SUMS + place_of(s, warp, j), c[s][j][0], c[s][j][1], c[s][j][2], c[s][j][3]);
    }
    if (S::NORM) barrier_wait(at.scales_there, scales_parity), scales_parity ^= 1;

    for (int item = order * WARPS + warp; item < ITEMS; item += S::SPLIT * WARPS) {
        const int column = item % COLUMNS, strip = item / COLUMNS % S::STRIPS, index = item / COLUMNS / S::STRIPS;
        const Tile tile = tile_of<S>(group, index);
        const int outputs = tile.set == 0 ? S::OUT0 : S::OUT1, output = tile.first + strip * 16;
        const int number = (group * S::TILES + index) * S::STRIPS + strip;
        float* const squares_at = step.squares + number * ROWS + column * 8 + 2 * t;
        if (output >= outputs) {
            if (S::SETS == 1 && g == 0) *(float2*)squares_at = make_float2(0.0f, 0.0f);
            continue;
        }
        // Whether the strip has its second eight outputs.
        const bool two = strip * 16 + 8 < S::HEIGHT && output + 8 < outputs;
        // The sums of all units, of the gate and of what it lets through where there are both, scaled.
        constexpr int BOTH = S::GATED ? 2 : 1;
        float parts[BOTH * S::SPLIT][4], v[BOTH][4];
        float* places[BOTH * S::SPLIT];
#pragma unroll
        for (int i = 0; i < BOTH * S::SPLIT; i++) {
            const int of = index + i / S::SPLIT * (S::TILES / 2);
            const int place = place_of(of / S::PER, of % S::PER * (S::HEIGHT / 16) + strip, column);
            places[i] = sums + i % S::SPLIT * S::SUMS + place;
        }
        collect(parts, places);
#pragma unroll
        for (int both = 0; both < BOTH; both++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                v[both][n] = parts[both * S::SPLIT][n];
#pragma unroll
                for (int unit = 1; unit < S::SPLIT; unit++) v[both][n] += parts[both * S::SPLIT + unit][n];
                if (S::NORM) v[both][n] *= at.scales[column * 8 + 2 * t + n % 2];
            }
        // After it is turned a lane has two neighbouring outputs of one row.
        const int row = column * 8 + g;
        const bool there = row < step.rows;
        if (S::SETS == 1) {
            bf16* const to = step.stream + (i64)row * HIDDEN + output + 2 * t;
            const bool known = item < S::SPLIT * WARPS;
            if (!known) ask_base(item);
            const float w0 = weights[0], w1 = weights[1];
            const u32 old0 = turn(base[0]), old1 = turn(base[1]);
            const u32 y0 = pack(v[0][0] + first_of(old0), v[0][1] + second_of(old0));
            const u32 y1 = two ? pack(v[0][2] + first_of(old1), v[0][3] + second_of(old1)) : 0;
            const u32 new0 = turn(y0), new1 = turn(y1);
            const u32 scaled0 = turn(pack(first_of(y0) * w0, second_of(y0) * w0));
            const u32 scaled1 = turn(pack(first_of(y1) * w1, second_of(y1) * w1));
            bf16* const next = step.scaled + (i64)row * HIDDEN + output + 2 * t;
            if (there) {
                *(u32*)to = new0;
                *(u32*)next = scaled0;
                if (two) *(u32*)(to + 8) = new1, *(u32*)(next + 8) = scaled1;
            }
            float squares[2] = {first_of(y0) * first_of(y0) + first_of(y1) * first_of(y1),
                                second_of(y0) * second_of(y0) + second_of(y1) * second_of(y1)};
#pragma unroll
            for (int away = 4; away < 32; away *= 2) {
                squares[0] += __shfl_xor_sync(0xffffffffu, squares[0], away);
                squares[1] += __shfl_xor_sync(0xffffffffu, squares[1], away);
            }
            if (g == 0) *(float2*)squares_at = make_float2(squares[0], squares[1]);
        } else {
            if (S::GATED)
#pragma unroll
                for (int n = 0; n < 4; n++) v[0][n] *= sigmoid(v[0][n]) * v[BOTH - 1][n];
            constexpr int STRIDE = S::GATED ? INTER : Q_OUT + 2 * KV_OUT;
            const int before = S::GATED || tile.set == 0 ? 0 : Q_OUT + (tile.set - 1) * KV_OUT;
            bf16* const to = (S::GATED ? step.gated : step.qkv) + (i64)row * STRIDE + before + output + 2 * t;
            const u32 y0 = turn(pack(v[0][0], v[0][1])), y1 = turn(pack(v[0][2], v[0][3]));
            if (there) {
                *(u32*)to = y0;
                if (two) *(u32*)(to + 8) = y1;
            }
        }
    }
}

// Two neighbours each of a head's first and second half, in a lane.
struct Pairs {
    u32 a, b;
};

__device__ __forceinline__ Pairs pairs_of(const bf16* head) {
    const int at = threadIdx.x % 32 * 2;
    return {fresh_pair(head + at), fresh_pair(head + HEAD / 2 + at)};
}

// A lane's part of a vector of a head's length.
struct Quad {
    float2 a, b;
};

__device__ __forceinline__ Quad quad_of(const float* a, const float* b) {
    const int at = threadIdx.x % 32 * 2;
    return {*(const float2*)(a + at), *(const float2*)(b + at)};
}

__device__ __forceinline__ Quad weight_of(const float* weight) { return quad_of(weight, weight + HEAD / 2); }

// Cosines and sines of a row.
__device__ __forceinline__ Quad angles_of(const Step& step, int row) {
    return quad_of(step.cos + row * (HEAD / 2), step.sin + row * (HEAD / 2));
}

// RMSNorm of a head and its rotation (rotate-half): with y = r w x and a, b the halves of y, (a cos - b sin, b cos + a sin).
__device__ __forceinline__ Pairs norm_rotate(const Pairs& x, const Quad& weight, const Quad& angles, float eps) {
    float a[2] = {first_of(x.a), second_of(x.a)}, b[2] = {first_of(x.b), second_of(x.b)};
    const float r = 1.0f / sqrtf(warp_sum(a[0] * a[0] + a[1] * a[1] + b[0] * b[0] + b[1] * b[1]) / HEAD + eps);
    const float2 c = angles.a, s = angles.b;
    a[0] *= r * weight.a.x, a[1] *= r * weight.a.y, b[0] *= r * weight.b.x, b[1] *= r * weight.b.y;
    return {pack(a[0] * c.x - b[0] * s.x, a[1] * c.y - b[1] * s.y), pack(b[0] * c.x + a[0] * s.x, b[1] * c.y + a[1] * s.y)};
}

// Into row `key` of keys or values in a slot: two boxes of 64 columns.
__device__ __forceinline__ void put_pairs(u32 boxes, int key, const Pairs& x) {
    const int lane = threadIdx.x % 32;
    const u32 to = boxes + key * 128 + (lane / 4 ^ key % 8) * 16 + lane % 4 * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x.a) : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + BOX), "r"(x.b) : "memory");
}

__device__ __forceinline__ void keep_pairs(bf16* head, const Pairs& x) {
    const int at = threadIdx.x % 32 * 2;
    *(u32*)(head + at) = x.a;
    *(u32*)(head + HEAD / 2 + at) = x.b;
}

__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_turned(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Times eight query heads of a group that a lane has a part of.
#define HALVES ((GROUPED + 7) / 8)

// The block's pieces of attention: norms and rotations, the new keys and values, what all queries find.
__device__ __forceinline__ void attention(
    const Vectors& vectors, const Step& step, const Places& at, Walk walk, int total, Ring& ring, u32 done) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    constexpr int STRIDE = Q_OUT + 2 * KV_OUT;
    const float factor = step.scale * LOG2_E;
    const u32 queries = at.x;
    // What is known before the projections are there.
    const Quad q_weight = weight_of(vectors.head_norm[0]), k_weight = weight_of(vectors.head_norm[1]);
    Quad angles = angles_of(step, walk.row);
    if (threadIdx.x == 0) wait_until(step.counters, done);
    workers_meet();
    // Each warp's queries of the next head, before they are wanted.
    Pairs raw[2] = {{0, 0}, {0, 0}};
    const auto ask = [&](const Walk& walk) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (warp + i * WARPS < GROUPED)
                raw[i] = pairs_of(step.qkv + (i64)walk.row * STRIDE + (walk.head * GROUPED + warp + i * WARPS) * HEAD);
    };
    if (walk.at < walk.end) ask(walk);
    while (walk.at < walk.end) {
        const int here = here_of(walk), row = walk.row, seen = at.seen[row];
        const bf16* const qkv = step.qkv + (i64)row * STRIDE;
        // The new key and value are one warp's work.
        const int newest = (seen - 1) / KEYS - walk.piece;
        const bool mine = at.fresh[row] && newest >= 0 && newest < here && newest % 4 * 3 + (seen - 1) % KEYS / 16 == warp;
        Pairs key = {0, 0}, value = {0, 0};
        if (mine) {
            key = pairs_of(qkv + Q_OUT + walk.head * HEAD);
            value = pairs_of(qkv + Q_OUT + KV_OUT + walk.head * HEAD);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int head = warp + i * WARPS;
            if (head >= 16) break;
            Pairs y = {0, 0};
            if (head < GROUPED) y = norm_rotate(raw[i], q_weight, angles, step.eps);
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(queries + head * QUERY + lane * 4), "r"(y.a) : "memory");
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(queries + head * QUERY + HEAD + lane * 4), "r"(y.b) : "memory");
        }
        if (mine) {
            key = norm_rotate(key, k_weight, angles, step.eps);
            const i64 to = (((i64)step.slots[row] * KV_HEADS + walk.head) * step.capacity + seen - 1) * HEAD;
            keep_pairs(vectors.kept[0] + to, key);
            keep_pairs(vectors.kept[1] + to, value);
        }
        workers_meet();
        Walk next = walk;
        next_head(next, at);
        if (next.at < next.end) {
            ask(next);
            angles = angles_of(step, next.row);
        }
        u32 a[HEAD / 16][4];
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) load_matrices(a[k], queries + lane % 16 * QUERY + (k * 16 + lane / 16 * 8) * 2);
        float sums[HEAD / 8][2 * HALVES], highest[HALVES], all[HALVES];
#pragma unroll
        for (int half = 0; half < HALVES; half++) highest[half] = -INFINITY, all[half] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
            for (int e = 0; e < 2 * HALVES; e++) sums[n][e] = 0.0f;

        for (int i = 0; i < here; i++) {
            barrier_wait(at.full + ring.slot * 8, ring.parity);
            // A slot is work for three warps; four slots are for all.
            if (i % 4 == warp / 3) {
                const int inside = warp % 3 * 16, first = (walk.piece + i) * KEYS + inside;
                const u32 keys = at.ring + ring.slot * SLOT, values = keys + 2 * BOX;
                if (mine && i == newest) {
                    put_pairs(keys, seen - 1 - first + inside, key);
                    put_pairs(values, seen - 1 - first + inside, value);
                    other_way();
                    __syncwarp();
                }
                if (first < seen) {
                    float p[2][4];
#pragma unroll
                    for (int e = 0; e < 4; e++) p[0][e] = p[1][e] = 0.0f;
#pragma unroll
                    for (int k = 0; k < HEAD / 16; k++) {
                        u32 b[4];
                        const u32 piece = k % 4 * 2 + (lane / 8 & 1);
                        load_matrices(b, keys + k / 4 * BOX + (inside + lane / 16 * 8 + lane % 8) * 128 +
                                             (piece ^ lane % 8) * 16);
                        multiply(p[0], a[k][0], a[k][1], a[k][2], a[k][3], b[0], b[1]);
                        multiply(p[1], a[k][0], a[k][1], a[k][2], a[k][3], b[2], b[3]);
                    }
                    if (first + 16 > seen) {
#pragma unroll
                        for (int n = 0; n < 2; n++)
#pragma unroll
                            for (int e = 0; e < 4; e++)
                                if (first + n * 8 + t * 2 + e % 2 >= seen) p[n][e] = -INFINITY;
                    }
                    u32 w[4] = {0, 0, 0, 0};
#pragma unroll
                    for (int half = 0; half < HALVES; half++) {
                        float top = fmaxf(fmaxf(p[0][2 * half], p[0][2 * half + 1]), fmaxf(p[1][2 * half], p[1][2 * half + 1]));
                        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                        top = fmaxf(highest[half], fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)) * factor);
                        const float shrink = exp2_fast(highest[half] - top);
                        highest[half] = top;
                        all[half] *= shrink;
#pragma unroll
                        for (int n = 0; n < 2; n++)
#pragma unroll
                            for (int e = 2 * half; e < 2 * half + 2; e++) {
                                p[n][e] = exp2_fast(fmaf(p[n][e], factor, -top));
                                all[half] += p[n][e];
                            }
#pragma unroll
                        for (int n = 0; n < HEAD / 8; n++) sums[n][2 * half] *= shrink, sums[n][2 * half + 1] *= shrink;
                        w[half] = pack(p[0][2 * half], p[0][2 * half + 1]);
                        w[2 + half] = pack(p[1][2 * half], p[1][2 * half + 1]);
                    }
#pragma unroll
                    for (int n = 0; n < HEAD / 16; n++) {
                        u32 b[4];
                        const u32 piece = n % 4 * 2 + lane / 16;
                        load_matrices_turned(b, values + n / 4 * BOX + (inside + (lane / 8 & 1) * 8 + lane % 8) * 128 +
                                                    (piece ^ lane % 8) * 16);
#pragma unroll
                        for (int m = 0; m < 2; m++) {
                            float* s = sums[2 * n + m];
                            float v[4] = {s[0], s[1], HALVES > 1 ? s[2 * HALVES - 2] : 0.0f, HALVES > 1 ? s[2 * HALVES - 1] : 0.0f};
                            multiply(v, w[0], w[1], w[2], w[3], b[2 * m], b[2 * m + 1]);
                            s[0] = v[0], s[1] = v[1];
                            if (HALVES > 1) s[2 * HALVES - 2] = v[2], s[2 * HALVES - 1] = v[3];
                        }
                    }
                }
                __syncwarp();
            }
            if (lane == 0) barrier_arrive(at.empty + ring.slot * 8);
            ring.next<SLOTS>();
        }

        float* const found = (float*)(at.room + FOUND);
        float2* const states = (float2*)(at.room + FOUND_STATE);
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            float sum = all[half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const int head = g + half * 8;
            if (head < GROUPED) {
                if (t == 0) states[warp * GROUPED + head] = make_float2(highest[half], sum);
#pragma unroll
                for (int n = 0; n < HEAD / 8; n++)
                    *(float2*)(found + (warp * GROUPED + head) * HEAD + n * 8 + t * 2) =
                        make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
            }
        }
        workers_meet();
        // What the warps found, and what the blocks found where several have a part of the head.
        const int begin = walk.at - walk.piece, one = taker_of(begin, total), share = blockIdx.x - one;
        const int shares = taker_of(begin + walk.pieces - 1, total) - one + 1;
        bf16* const out = step.attended + (i64)row * Q_OUT + walk.head * GROUPED * HEAD;
        // Two neighbours of a head in a thread, and the highest score and total, which go from block to block with them.
        for (int i = threadIdx.x * 2; i < GROUPED * HEAD; i += WORKERS * 2) {
            const int head = i / HEAD, d = i % HEAD;
            float v[4] = {0.0f, 0.0f, -INFINITY, 0.0f};
#pragma unroll
            for (int w = 0; w < WARPS; w++) v[2] = fmaxf(v[2], states[w * GROUPED + head].x);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float2 state = states[w * GROUPED + head];
                const float weight = state.y > 0.0f ? exp2_fast(state.x - v[2]) : 0.0f;
                const float2 more = *(const float2*)(found + (w * GROUPED + head) * HEAD + d);
                v[0] = fmaf(weight, more.x, v[0]), v[1] = fmaf(weight, more.y, v[1]), v[3] = fmaf(weight, state.y, v[3]);
            }
            if (share > 0) {
                leave(step.joined + ((i64)blockIdx.x * GROUPED * HEAD + i) * 2, v[0], v[1], v[2], v[3]);
                continue;
            }
            for (int other = 1; other < shares; other++) {
                float more[1][4];
                float* const from[1] = {step.joined + ((i64)(blockIdx.x + other) * GROUPED * HEAD + i) * 2};
                collect(more, from);
                const float higher = fmaxf(v[2], more[0][2]), old = exp2_fast(v[2] - higher);
                const float weight = exp2_fast(more[0][2] - higher);
                v[0] = fmaf(weight, more[0][0], v[0] * old), v[1] = fmaf(weight, more[0][1], v[1] * old);
                v[2] = higher, v[3] = fmaf(weight, more[0][3], v[3] * old);
            }
            *(u32*)(out + i) = pack(v[0] / v[3], v[1] / v[3]);
        }
        workers_meet();
        walk = next;
    }
}

// The stream and what the first product reads, from x; zeros for rows that see nothing.
__device__ __forceinline__ void begin_stream(const Step& step, const Places& at) {
    const int lane = threadIdx.x % 32;
    const float* weight = at.vectors[0].norm[0];
    constexpr int STRIPS = HIDDEN / 16, READ = Down::GROUPS * Down::TILES * Down::STRIPS;
    for (int strip = blockIdx.x * WARPS + threadIdx.x / 32; strip < (STRIPS > READ ? STRIPS : READ); strip += BLOCKS * WARPS) {
        float sum = 0.0f;
        if (strip < STRIPS && lane < step.rows) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const i64 place = (i64)lane * HIDDEN + strip * 16 + i * 8;
                const Eight x = load8(step.x + place), w = load8(weight + strip * 16 + i * 8);
                Eight y;
#pragma unroll
                for (int n = 0; n < 8; n++) sum += x.x[n] * x.x[n], y.x[n] = x.x[n] * w.x[n];
                store8(step.stream + place, x);
                store8(step.scaled + place, y);
            }
        }
        if (lane < ROWS) step.squares[strip * ROWS + lane] = sum;
    }
    for (int row = blockIdx.x; row < step.rows; row += BLOCKS)
        if (at.seen[row] == 0)
            for (int i = threadIdx.x; i < Q_OUT / 2; i += WORKERS) *(u32*)(step.attended + (i64)row * Q_OUT + i * 2) = 0;
}

// Strips of squares that a norm reads: those of the product that made its input, and of `begin_stream`.
#define STRIPS_AFTER(S) (S::GROUPS * S::TILES * S::STRIPS)

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_layers(
    const Layer* layers, int count, int rows, int capacity, const bf16* x, bf16* stream, bf16* scaled, bf16* qkv, bf16* attended,
    bf16* gated, float* partial, float* squares, float* joined, u32* counters, const u32* slots, const u32* lengths,
    const float* cos, const float* sin, float eps, float scale, float low_scale) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Step step = {layers, count, rows, capacity, x, stream, scaled, qkv, attended, gated, partial, squares, joined, counters,
                       slots, lengths, cos, sin, eps, scale, low_scale};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr int X_ROOM = X_SLOTS * X_SLOT, ATTENTION_ROOM = FOUND_STATE + WARPS * GROUPED * 8;
    Places at;
    at.ring = shared_at(memory);
    at.x = at.ring + SLOTS * SLOT;
    at.room = memory + SLOTS * SLOT;
    unsigned char* const rest = at.room + (X_ROOM > ATTENTION_ROOM ? X_ROOM : ATTENTION_ROOM);
    at.full = shared_at(rest), at.empty = at.full + SLOTS * 8;
    at.x_full = at.empty + SLOTS * 8, at.x_empty = at.x_full + X_SLOTS * 8, at.scales_there = at.x_empty + X_SLOTS * 8;
    at.scales = (float*)(rest + (2 * SLOTS + 2 * X_SLOTS + 1) * 8);
    at.seen = (int*)(at.scales + ROWS), at.fresh = at.seen + ROWS;
    at.vectors = (Vectors*)(rest + 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) barrier_start(at.full + i * 8, 1), barrier_start(at.empty + i * 8, WARPS);
        for (int i = 0; i < X_SLOTS; i++) barrier_start(at.x_full + i * 8, 1), barrier_start(at.x_empty + i * 8, WARPS);
        barrier_start(at.scales_there, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        other_way();
    }
    if (threadIdx.x < ROWS) {
        const int wanted = threadIdx.x < rows ? lengths[threadIdx.x] : 0;
        at.seen[threadIdx.x] = min(wanted, capacity);
        at.fresh[threadIdx.x] = wanted <= capacity;
    }
    if (threadIdx.x < 16) ((u64*)at.vectors)[threadIdx.x] = ((const u64*)&layers[0].vectors)[threadIdx.x];
    // The host wrote the table of matrices.
    for (int i = threadIdx.x; i < count * 16; i += THREADS)
        asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(layers[i / 16].weights + i % 16) : "memory");
    __syncthreads();
    const int total = total_of(at);
    const Walk walk = begin_walk(at, total);

    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        word once, again;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
        asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(again));
        if (warp == WARPS && lane == 0) {
            Filling filling;
            for (int i = 0; i < count; i++) {
                const Layer& layer = layers[i];
                send_weights<Qkv>(layer, at, filling, once, again);
                send_keys(layer, step, at, walk, filling, once);
                send_weights<Output>(layer, at, filling, once, again);
                send_weights<GateUp>(layer, at, filling, once, again);
                send_weights<Down>(layer, at, filling, once, again);
            }
        } else if (warp == WARPS + 1) {
            Ring ring;
            for (u32 i = 0; i < count; i++) {
                send_x<Qkv>(scaled, step, at, ring, BLOCKS * (5 * i + 1));
                send_x<Output>(attended, step, at, ring, BLOCKS * (5 * i + 3));
                send_x<GateUp>(scaled, step, at, ring, BLOCKS * (5 * i + 4));
                send_x<Down>(gated, step, at, ring, BLOCKS * (5 * i + 5));
            }
        } else if (warp == WARPS + 2) {
            for (u32 i = 0; i < count; i++) {
                if (blockIdx.x < Qkv::UNITS) send_scales(step, at, STRIPS_AFTER(Down), BLOCKS * (5 * i + 1));
                if (blockIdx.x < GateUp::UNITS) send_scales(step, at, STRIPS_AFTER(Output), BLOCKS * (5 * i + 4));
            }
        } else if (warp == WARPS + 3) {
            // The copy engine's descriptions of the next layer's matrices, before they are wanted.
            for (u32 i = 0; i < count; i++) {
                if (i > 0 && lane == 0) wait_until(counters, BLOCKS * (5 * i - 1));
                __syncwarp();
                const Layer& layer = layers[i];
                if (lane < 16) asm volatile("prefetch.tensormap [%0];" ::"l"(layer.weights + lane) : "memory");
                // And its norms.
                for (int line = blockIdx.x * 32 + lane; line < HIDDEN / 16; line += BLOCKS * 32)
                    asm volatile("prefetch.global.L2 [%0];" ::"l"(layer.vectors.norm[line % 2] + line / 2 * 32));
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");
        Ring ring, x_ring;
        u32 scales_parity = 0;
        begin_stream(step, at);
        phase_done(step);
        for (u32 i = 0; i < count; i++) {
            const Vectors &vectors = at.vectors[i % 2], &next = at.vectors[(i + 1) % 2];
            if (threadIdx.x < 16 && i + 1 < count)
                ((u64*)&next)[threadIdx.x] = ((const u64*)&layers[i + 1].vectors)[threadIdx.x];
            product<Qkv>(vectors, 0, step, at, ring, x_ring, scales_parity, BLOCKS * (5 * i + 1));
            phase_done(step);
            attention(vectors, step, at, walk, total, ring, BLOCKS * (5 * i + 2));
            phase_done(step);
            product<Output>(vectors, vectors.norm[1], step, at, ring, x_ring, scales_parity, BLOCKS * (5 * i + 3));
            phase_done(step);
            product<GateUp>(vectors, 0, step, at, ring, x_ring, scales_parity, BLOCKS * (5 * i + 4));
            phase_done(step);
            product<Down>(vectors, i + 1 < count ? next.norm[0] : 0, step, at, ring, x_ring, scales_parity, BLOCKS * (5 * i + 5));
            phase_done(step);
        }
    }
    __syncwarp();
    __syncthreads();
    // The last to leave sets the counters back.
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(counters + 1, 1) == BLOCKS - 1) {
            counters[0] = counters[1] = 0;
        }
    }
}

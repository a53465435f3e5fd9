// The fused row on the CPU, to the same bits as fastscore/ops and fastscore/noise.py, which specify it.
//
// Plain C ABI, loaded with ctypes. Compile with -ffp-contract=off: every multiply and add rounds on its
// own. A tile of 1024 elements (many samples where they are short) passes through small loops in L1
// cache; what it computes does not depend on which thread has it, nor on the instruction set.
#include <atomic>

#include "noise.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum { FLOAT32, BFLOAT16 };
enum { SAMPLE, EXPECTED, BATCH, TUTORIAL };

struct Network { const void *f, *f2; int64_t type, type2, channels, channels2; };  // so many channels lie last

// ---- the row

INLINE float widened(float v) { return v; }
INLINE float widened(uint16_t v) { return bits<float>(static_cast<uint32_t>(v) << 16); }

// Samples of d elements whose channels lie last, in the order of the state: one plane after another.
template <class T> INLINE void gather(float* buffer, const T* from, int64_t channels, int64_t d, int64_t at, int64_t n) {
    int64_t pixels = d / channels;
    for (int64_t i = 0, count; i < n; i += count) {
        int64_t e = (at + i) % d, channel = e / pixels, pixel = e % pixels;
        const T* plane = from + (at + i - e) + pixel * channels + channel;
        count = pixels - pixel < n - i ? pixels - pixel : n - i;
        for (int64_t k = 0; k < count; ++k) buffer[i + k] = widened(plane[k * channels]);
    }
}

INLINE const float* load(float* buffer, const void* from, int64_t type, int64_t channels, int64_t d, int64_t at,
                         int64_t n) {
    const float* full = static_cast<const float*>(from);
    const uint16_t* half = static_cast<const uint16_t*>(from);
    if (channels > 1) {
        if (type == FLOAT32) gather(buffer, full, channels, d, at, n);
        else gather(buffer, half, channels, d, at, n);
        return buffer;
    }
    if (type == FLOAT32) return full + at;
    SIMD for (int64_t i = 0; i < n; ++i) buffer[i] = widened(half[at + i]);
    return buffer;
}

INLINE uint16_t to_bfloat16(float v) {  // to nearest, ties to even
    uint32_t b = bits<uint32_t>(v), rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((b & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// m = p x + q F + q2 F2
INLINE void network_value(float* m, const float* row, const float* x, const Network& net, int64_t d, int64_t at,
                          int64_t n) {
    float buffer[TILE], p = row[P], q = row[Q], q2 = row[Q2];
    const float* f = load(buffer, net.f, net.type, net.channels, d, at, n);
    SIMD for (int64_t i = 0; i < n; ++i) m[i] = p * x[i] + q * f[i];
    if (!net.f2) return;
    f = load(buffer, net.f2, net.type2, net.channels2, d, at, n);
    SIMD for (int64_t i = 0; i < n; ++i) m[i] = m[i] + q2 * f[i];
}

// How a state [n, d] is cut into tiles: some samples together, or a piece of one.
struct Tiles {
    int64_t n, d, samples, pieces;
    Tiles(int64_t n, int64_t d) : n(n), d(d), samples(d > TILE ? 1 : TILE / ((d + 3) / 4 * 4)), pieces((d + TILE - 1) / TILE) {}
    int64_t groups() const { return (n + samples - 1) / samples; }
    INLINE int64_t count(int64_t first) const { return first + samples < n ? samples : n - first; }
    INLINE int64_t length(int64_t e) const { return e + TILE < d ? TILE : d - e; }
};

struct Update {
    int64_t n, d, slots, u_type;
    float *x, *hist, *mean;
    void* u;
    Key key;             // of the row; no ids: no noise
    Key known_key;
    const float* known;  // null: no mask
    const uint8_t* mask;
    Network net;
    Rows rows, known_rows;
};

INLINE void update_span(const Update& a, const float* row, const float* mine, int64_t at, int64_t n, const float* z,
                        const float* known_z) {
    float y[TILE], m[TILE], w = row[A];
    float* x = a.x + at;
    SIMD for (int64_t i = 0; i < n; ++i) y[i] = w * x[i];
    if (a.net.f) {
        network_value(m, row, x, a.net, a.d, at, n);
        float bound = row[CLIP];
        if (bound > 0.0f) {
            SIMD for (int64_t i = 0; i < n; ++i) m[i] = m[i] > bound ? bound : m[i];  // NaN stays
            SIMD for (int64_t i = 0; i < n; ++i) m[i] = m[i] < -bound ? -bound : m[i];
        }
        w = row[B];
        SIMD for (int64_t i = 0; i < n; ++i) y[i] = y[i] + w * m[i];
    }
    for (int64_t k = 0; k < a.slots; ++k) {
        const float* h = a.hist + k * a.n * a.d + at;
        w = row[W0 + k];
        SIMD for (int64_t i = 0; i < n; ++i) y[i] = y[i] + w * h[i];
    }
    if (a.mean) std::memcpy(a.mean + at, y, n * sizeof(float));
    if (z) {
        w = row[C];
        SIMD for (int64_t i = 0; i < n; ++i) y[i] = y[i] + w * z[i];
    }
    if (a.known) {
        const float* clean = a.known + at;
        const uint8_t* is_known = a.mask + at;
        w = mine[A];
        float c = mine[C];
        SIMD for (int64_t i = 0; i < n; ++i) y[i] = is_known[i] ? w * clean[i] + c * known_z[i] : y[i];
        if (a.mean)
            for (int64_t i = 0; i < n; ++i) a.mean[at + i] = is_known[i] ? w * clean[i] : a.mean[at + i];
    }
    float push = row[PUSH];
    if (a.net.f && push >= 0.0f && push < static_cast<float>(a.slots) && push == std::floor(push))
        std::memcpy(a.hist + static_cast<int64_t>(push) * a.n * a.d + at, m, n * sizeof(float));
    std::memcpy(x, y, n * sizeof(float));
    if (!a.u) return;
    w = row[C_IN];
    if (a.u_type == FLOAT32) {
        float* u = static_cast<float*>(a.u) + at;
        SIMD for (int64_t i = 0; i < n; ++i) u[i] = w * y[i];
    } else {
        uint16_t* u = static_cast<uint16_t*>(a.u) + at;
        SIMD for (int64_t i = 0; i < n; ++i) u[i] = to_bfloat16(w * y[i]);
    }
}

INLINE void update(const Update& a, int64_t begin, int64_t end) {
    float z[TILE], known_z[TILE];
    Tiles tiles(a.n, a.d);
    bool one_row = !a.rows.stride && !(a.known && a.known_rows.stride);
    for (int64_t item = begin; item < end; ++item) {
        int64_t first = item / tiles.pieces * tiles.samples, e = item % tiles.pieces * TILE;
        int64_t count = tiles.count(first), len = tiles.length(e);
        if (a.key.ids) normals(z, &a.rows, 0, a.key, first, count, e, len);
        if (a.known) normals(known_z, &a.known_rows, 0, a.known_key, first, count, e, len);
        int64_t span = one_row ? count * len : len;  // samples of one row lie side by side
        for (int64_t j = 0; j < count * len; j += span) {
            int64_t s = first + j / len;
            update_span(a, a.rows.of(s), a.known ? a.known_rows.of(s) : nullptr, s * a.d + e, span,
                        a.key.ids ? z + j : nullptr, known_z + j);
        }
    }
}

// ---- norms

// Add the upper half of the lanes to the lower half until one is left.
INLINE float halve(float* lanes, int64_t d) {
    int64_t half = 1;
    while (2 * half < d && 2 * half < TILE) half *= 2;
    for (; half; half /= 2) SIMD for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
    return lanes[0];
}

INLINE void add_squares(float* lanes, const float* v, int64_t n) {
    SIMD for (int64_t i = 0; i < n; ++i) lanes[i] = lanes[i] + v[i] * v[i];
}

struct Norms {
    int64_t n, d;
    const float* x;
    float *mm, *zz;
    Key key;  // no ids: |z|^2 is not wanted
    Network net;
    Rows rows;
};

INLINE void norms(const Norms& a, int64_t begin, int64_t end) {
    float z[TILE], m[TILE], lanes_m[TILE], lanes_z[TILE];
    Tiles tiles(a.n, a.d);
    int64_t lanes = 2;
    while (lanes < a.d && lanes < TILE) lanes *= 2;
    for (int64_t group = begin; group < end; ++group)
        for (int64_t e = 0; e < a.d; e += TILE) {
            int64_t first = group * tiles.samples, count = tiles.count(first), len = tiles.length(e);
            if (a.key.ids) normals(z, &a.rows, 0, a.key, first, count, e, len);
            for (int64_t j = 0; j < count; ++j) {
                int64_t s = first + j, at = s * a.d + e;
                if (e == 0)
                    for (int64_t i = 0; i < lanes; ++i) lanes_m[i] = lanes_z[i] = 0.0f;
                network_value(m, a.rows.of(s), a.x + at, a.net, a.d, at, len);
                add_squares(lanes_m, m, len);
                if (a.key.ids) add_squares(lanes_z, z + j * len, len);
                if (e + len < a.d) continue;
                a.mm[s] = halve(lanes_m, a.d);
                a.zz[s] = a.key.ids ? halve(lanes_z, a.d) : static_cast<float>(a.d);
            }
        }
}

// (sum of sqrt(squares) over the valid samples / their number)^2; the number itself if there are no squares
float sum_of_roots(const float* squares, const float* valid, int64_t n) {
    float lanes[TILE] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i % TILE] += squares ? std::sqrt(squares[i]) * valid[i] : valid[i];
    return halve(lanes, TILE);
}

// ---- normals alone, bytes

struct Normal { int64_t n, d; Key key; float* out; uint32_t draw; };

INLINE void normal(const Normal& a, int64_t begin, int64_t end) {
    float z[TILE];
    Tiles tiles(a.n, a.d);
    for (int64_t item = begin; item < end; ++item) {
        int64_t first = item / tiles.pieces * tiles.samples, e = item % tiles.pieces * TILE;
        int64_t count = tiles.count(first), len = tiles.length(e);
        normals(z, nullptr, a.draw, a.key, first, count, e, len);
        std::memcpy(a.out + first * a.d + e, z, count * len * sizeof(float));
    }
}

struct Quantize { int64_t n, channels, pixels; const float* x; uint8_t* out; float offset; };

INLINE void quantize(const Quantize& a, int64_t begin, int64_t end) {
    uint8_t bytes[TILE];
    for (int64_t image = begin; image < end; ++image)
        for (int64_t p = 0; p < a.pixels; p += TILE)
            for (int64_t c = 0; c < a.channels; ++c) {
                int64_t n = p + TILE < a.pixels ? TILE : a.pixels - p;
                const float* x = a.x + (image * a.channels + c) * a.pixels + p;
                SIMD for (int64_t i = 0; i < n; ++i) {
                    float y = x[i] * 127.5f + a.offset;
                    y = y > 0.0f ? y : 0.0f;  // NaN is not above 0
                    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(y > 255.0f ? 255.0f : y));
                }
                uint8_t* out = a.out + (image * a.pixels + p) * a.channels + c;
                for (int64_t i = 0; i < n; ++i) out[i * a.channels] = bytes[i];
            }
}

// ---- instruction sets and threads

int isa = 0;  // 0: what every machine of this architecture has

#if defined(__x86_64__)
#define CLONE(op, Args, suffix, target_) \
    __attribute__((target(target_))) void op##suffix(const Args& a, int64_t lo, int64_t hi) { op(a, lo, hi); }
#define CLONES(op, Args)                   \
    CLONE(op, Args, _avx2, "avx2")         \
    CLONE(op, Args, _avx512, "avx512f,avx512dq,avx512vl,avx512bw") \
    void op##_base(const Args& a, int64_t lo, int64_t hi) { op(a, lo, hi); } \
    constexpr void (*op##_of[])(const Args&, int64_t, int64_t) = {op##_base, op##_avx2, op##_avx512};
int best_isa() {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) return 2;
    return __builtin_cpu_supports("avx2") ? 1 : 0;
}
#else
#define CLONES(op, Args) \
    void op##_base(const Args& a, int64_t lo, int64_t hi) { op(a, lo, hi); } \
    constexpr void (*op##_of[])(const Args&, int64_t, int64_t) = {op##_base};
int best_isa() { return 0; }
#endif
CLONES(update, Update)
CLONES(norms, Norms)
CLONES(normal, Normal)
CLONES(quantize, Quantize)

// GOMP_parallel of the OpenMP runtime that PyTorch uses: its threads are at hand, others would compete with them.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);

template <class Args> void run(void (*op)(const Args&, int64_t, int64_t), const Args& a, int64_t items, Fork fork,
                               int64_t threads) {
    struct Job {
        decltype(op) call;
        const Args& args;
        int64_t items, parts;
        std::atomic<int64_t> next;
    } job{op, a, items, threads < items ? threads : items, {0}};
    if (!fork || job.parts < 2) return op(a, 0, items);
    fork([](void* p) {
        Job& j = *static_cast<Job*>(p);
        for (int64_t k; (k = j.next++) < j.parts;) j.call(j.args, j.items * k / j.parts, j.items * (k + 1) / j.parts);
    }, &job, static_cast<unsigned>(job.parts), 0);
}

}  // namespace

// Of the structures above; fused.py has the same number.
EXPORT int fastscore_abi() { return 4; }

// Use the best instruction set up to `limit` (0 baseline, 1 AVX2, 2 AVX-512); return the one in use.
EXPORT int fastscore_isa(int limit) { return isa = best_isa() < limit ? best_isa() : limit; }

// Each returns 0, or 1 if a row number lies outside its table.
EXPORT int fastscore_update(const Update* a, Fork fork, int64_t threads) {
    if (!a->rows.valid(a->n) || (a->known && !a->known_rows.valid(a->n))) return 1;
    Tiles tiles(a->n, a->d);
    run(update_of[isa], *a, tiles.groups() * tiles.pieces, fork, threads);
    return 0;
}

EXPORT int fastscore_langevin(const Norms* a, float* scratch, const float* valid, int64_t norm, Fork fork,
                              int64_t threads) {
    if (!a->rows.valid(a->n)) return 1;
    run(norms_of[isa], *a, Tiles(a->n, a->d).groups(), fork, threads);
    float mean_mm = 0.0f, mean_zz = 0.0f;
    const bool mean = norm == BATCH || norm == TUTORIAL;
    if (mean) {
        float count = sum_of_roots(nullptr, valid, a->n);
        mean_mm = sum_of_roots(a->mm, valid, a->n) / count;
        mean_zz = sum_of_roots(a->zz, valid, a->n) / count;
    }
    for (int64_t s = 0; s < a->n; ++s) {
        const float* row = a->rows.of(s);
        float* own = scratch + s * WIDTH;
        float mm = mean ? mean_mm * mean_mm : a->mm[s], zz = norm == BATCH ? mean_zz * mean_zz : a->zz[s];
        float step = row[SNR] * (zz / mm);
        step = step > row[CAP] ? row[CAP] : step;  // NaN stays
        std::memcpy(own, row, WIDTH * sizeof(float));
        own[B] = step;
        own[C] = std::sqrt(step * 2.0f);
    }
    return 0;
}

EXPORT int fastscore_normal(const Normal* a, Fork fork, int64_t threads) {
    Tiles tiles(a->n, a->d);
    run(normal_of[isa], *a, tiles.groups() * tiles.pieces, fork, threads);
    return 0;
}

EXPORT int fastscore_quantize(const Quantize* a, Fork fork, int64_t threads) {
    run(quantize_of[isa], *a, a->n, fork, threads);
    return 0;
}

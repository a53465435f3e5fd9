// Noise v1 to the bits of fastscore/noise.py, one tile of normals at a time.
//
// Compile with -ffp-contract=off. The loop over Philox blocks is the one that must vectorise: it makes
// whole vectors from counters of as many samples as a tile holds.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

namespace {

constexpr int64_t TILE = 1024;  // also the number of lanes of a per-sample sum (abi.LANES)
constexpr int64_t WIDE = 16;    // Philox blocks are made in multiples of this
enum { A, B, C, P, Q, Q2, C_IN, W0, PUSH = 11, DRAW, CLIP, SNR, CAP, WIDTH };  // kernels/abi.py

struct Rows {
    const float* table;
    const void* idx;
    int64_t count, stride, wide;

    INLINE int64_t number(int64_t s) const {
        return wide ? static_cast<const int64_t*>(idx)[s * stride] : static_cast<const int32_t*>(idx)[s * stride];
    }
    INLINE const float* of(int64_t s) const { return table + number(s) * WIDTH; }
    INLINE uint32_t draw(int64_t s) const { return static_cast<uint32_t>(static_cast<int64_t>(of(s)[DRAW])); }
    bool valid(int64_t n) const {
        for (int64_t s = 0; s < (stride ? n : 1); ++s)
            if (number(s) < 0 || number(s) >= count) return false;
        return true;
    }
};

// Whose noise: each sample's id, and a seed of its own (stride 1) or the one of all (stride 0).
struct Key {
    const int64_t *ids, *seeds;
    int64_t stride;

    INLINE bool mixed(int64_t first, int64_t count) const {
        const int64_t* own = seeds + first;
        int64_t differ = 0;
        if (stride) _Pragma("omp simd reduction(|:differ)") for (int64_t s = 0; s < count; ++s) differ |= own[s] ^ own[0];
        return differ;
    }
};

template <class T, class S> INLINE T bits(S s) {
    T t;
    static_assert(sizeof t == sizeof s, "");
    std::memcpy(&t, &s, sizeof t);
    return t;
}

INLINE float minus_two_log(uint32_t w) {
    int32_t b = bits<int32_t>(static_cast<float>(w) + 0.5f), k = (b - 0x4F3504F3) & -0x800000;
    float g = 2.0f - bits<float>(b - k - 0x0F800000), f = static_cast<float>(k);
    float y = 0x1.6f01acp-12f * g + 0x1.2a57cap-10f;
    y = y * g + 0x1.31f4f4p-9f;
    y = y * g + 0x1.5274b6p-8f;
    y = y * g + 0x1.98b1f2p-7f;
    y = y * g + 0x1.000b14p-5f;
    y = y * g + 0x1.555794p-4f;
    y = y * g + 0x1.ffffdcp-3f;
    y = y * (g * g);
    y = y + f * -0x1.7f7d1cp-42f;
    y = y + g;
    return y + f * -0x1.62e4p-23f;
}

INLINE float sin_squared(uint32_t w) {
    float x = static_cast<float>(static_cast<int32_t>(w << 2)) * 0x1p-31f, z = x * x;
    float y = 0x1.8320cep-17f * z + -0x1.e04582p-12f;
    y = y * z + 0x1.55cb42p-7f;
    y = y * z + -0x1.03c1cep-3f;
    y = y * z + 0x1.3bd3ccp-1f;
    return y * z;
}

INLINE void box_muller(uint32_t w0, uint32_t w1, float& z0, float& z1) {
    float total = minus_two_log(w0), across = total * sin_squared(w1);
    float a = std::sqrt(total - across), b = std::sqrt(across);
    bool odd = (w1 + 0x20000000u) & 0x40000000u;
    z0 = bits<float>(bits<uint32_t>(odd ? b : a) | ((w1 + 0x40000000u) & 0x80000000u));
    z1 = bits<float>(bits<uint32_t>(odd ? a : b) | (w1 & 0x80000000u));
}

using Words = uint32_t[TILE / 4];

// z of `total` Philox blocks from their counters; MIXED: words 4 and 5 have the key of each, else `seed` is of all.
template <bool MIXED> INLINE void philox_normals(float* z, const Words* word, uint64_t seed, int64_t total) {
    SIMD for (int64_t i = 0; i < total; ++i) {
        uint32_t c0 = word[0][i], c1 = word[1][i], c2 = word[2][i], c3 = word[3][i];
        uint32_t k0 = MIXED ? word[4][i] : static_cast<uint32_t>(seed);
        uint32_t k1 = MIXED ? word[5][i] : static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(p1);
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(p0);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        box_muller(c0, c1, z[4 * i], z[4 * i + 1]);
        box_muller(c2, c3, z[4 * i + 2], z[4 * i + 3]);
    }
}

// One half of each sample's number, for each of its blocks.
INLINE void spread(uint32_t* to, const int64_t* from, int shift, int64_t count, int64_t blocks) {
    if (blocks == 1) {  // short samples come in whole vectors
        SIMD for (int64_t s = 0; s < count; ++s) to[s] = static_cast<uint32_t>(static_cast<uint64_t>(from[s]) >> shift);
        return;
    }
    for (int64_t s = 0; s < count; ++s, to += blocks) {
        uint32_t half = static_cast<uint32_t>(static_cast<uint64_t>(from[s]) >> shift);
        for (int64_t b = 0; b < blocks; ++b) to[b] = half;
    }
}

// z of `count` samples from `first` on, elements e .. e + len of each, packed; draw: of the row, or given.
INLINE void normals(float* z, const Rows* rows, uint32_t draw, const Key& key, int64_t first, int64_t count, int64_t e,
                    int64_t len) {
    Words word[6];
    uint64_t seed = static_cast<uint64_t>(key.seeds[first * key.stride]);
    int64_t blocks = (len + 3) / 4, total = count * blocks;
    bool mixed = key.mixed(first, count);  // a tile of one seed costs no more than a batch of one
    if (rows) draw = rows->draw(first);
    SIMD for (int64_t i = 0; i < total; ++i) word[1][i] = draw;
    if (rows && rows->stride)
        for (int64_t s = 1; s < count; ++s)
            for (int64_t b = 0; b < blocks; ++b) word[1][s * blocks + b] = rows->draw(first + s);
    for (int64_t i = 0; i < total; i += blocks)
        for (int64_t b = 0; b < blocks; ++b) word[0][i + b] = static_cast<uint32_t>(e / 4 + b);
    for (int half = 0; half < 2; ++half) {
        spread(word[2 + half], key.ids + first, 32 * half, count, blocks);
        if (mixed) spread(word[4 + half], key.seeds + first, 32 * half, count, blocks);
    }
    for (; total % WIDE; ++total)  // whole vectors only; what is too much is not read
        for (auto& words : word) words[total] = 0;
    if (mixed)
        philox_normals<true>(z, word, seed, total);
    else
        philox_normals<false>(z, word, seed, total);
    if (len % 4)  // a block never lands beyond where it came from
        for (int64_t j = 1; j < count; ++j)
            for (int64_t b = 0; b < blocks; ++b) std::memmove(z + j * len + 4 * b, z + (j * blocks + b) * 4, 16);
}

}  // namespace

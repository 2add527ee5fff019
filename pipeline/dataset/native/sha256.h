/* SHA-256 (FIPS 180-4) by the instructions that x86 has for it. They wait for each other most of the time, so that other work
 * between two blocks costs nothing; that is why this isn't left to a library. */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#include <immintrin.h>

#define WITH_SHA __attribute__((target("sha,sse4.1,ssse3")))
#define HAS_SHA_CODE 1

static const uint32_t ROUND_CONSTANTS[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* The eight words of the state as the instructions want them: a, b, e, f and c, d, g, h, each from the highest place down. */
typedef struct {
    __m128i abef, cdgh;
} sha256;

static int can_sha256(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}

WITH_SHA static inline void sha256_start(sha256 *s) {
    s->abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
    s->cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
}

/* Hashes a block, and counts 64 bytes of pixels on the way, the first of channel `phase`, unless n is NULL. */
WITH_SHA static inline __attribute__((always_inline)) void sha256_block(sha256 *s, const uint8_t *at, counters *n,
                                                                        const uint8_t *pixels, int phase) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i abef = s->abef, cdgh = s->cdgh, word[4];
    for (int i = 0; i < 4; i++) word[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at + 16 * i)), swap);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) { /* four rounds each */
        __m128i now = word[i & 3], sum = _mm_add_epi32(now, _mm_load_si128((const __m128i *)(ROUND_CONSTANTS + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
        if (n) count_4(n, pixels, 4 * i, phase);
        if (i < 12) {
            __m128i next = word[(i + 1) & 3], third = word[(i + 2) & 3], last = word[(i + 3) & 3];
            __m128i some = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(last, third, 4));
            word[i & 3] = _mm_sha256msg2_epu32(some, last);
        }
    }
    s->abef = _mm_add_epi32(s->abef, abef);
    s->cdgh = _mm_add_epi32(s->cdgh, cdgh);
}

/* Hashes whole blocks. */
WITH_SHA static void sha256_blocks(sha256 *s, const uint8_t *at, size_t count) {
    for (; count; count--, at += 64) sha256_block(s, at, NULL, NULL, 0);
}

/* Hashes the last `count` bytes of a message of `total`, fewer than 64, and writes the digest. */
WITH_SHA static void sha256_end(sha256 *s, const uint8_t *rest, size_t count, uint64_t total, uint8_t *digest) {
    uint8_t block[128] = {0};
    size_t size = count < 56 ? 64 : 128;
    memcpy(block, rest, count);
    block[count] = 0x80;
    for (int i = 0; i < 8; i++) block[size - 1 - i] = (uint8_t)(8 * total >> 8 * i);
    sha256_blocks(s, block, size / 64);
    uint32_t high[4], low[4];
    _mm_storeu_si128((__m128i *)high, s->abef);
    _mm_storeu_si128((__m128i *)low, s->cdgh);
    const uint32_t words[8] = {high[3], high[2], low[3], low[2], high[1], high[0], low[1], low[0]};
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(words[i / 4] >> (24 - 8 * (i % 4)));
}

#else
#define HAS_SHA_CODE 0
#endif

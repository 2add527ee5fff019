/* Encoded bytes -> pixels -> facts of the pixels: what an ingest does with each image. */
#include "entropy.h"
#include "facts.h"
#include "sha256.h"
#include "whole_jpeg.h"

enum { MAX_SIDE = 65500 };

/* Whether decode_jpeg is faster than libjpeg-turbo: with AVX2. Without it, it takes 1.4 times as long. */
int is_fast(void) { return IS_FAST; }

/* Returns whether a JPEG was decoded, to the pixels that libjpeg-turbo gives; else it must be left to that.
 * out: uint8 [height][width][3]. */
int decode_jpeg(const uint8_t *data, size_t length, int height, int width, uint8_t *out) {
    static _Thread_local jpeg state;
    if (length < 4 || data[0] != 0xFF || data[1] != 0xD8) return 0;
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE) return 0;
    return decode_whole(&state, data, length, height, width, out);
}

#if HAS_SHA_CODE
/* Counts `size` bytes of pixels, and hashes them behind a prefix of fewer than 64. */
WITH_SHA static void count_and_hash(counters *n, const uint8_t *pixels, size_t size, const char *prefix, uint8_t *digest) {
    size_t length = strlen(prefix), hashed = size < 64 - length ? size : 64 - length, counted = 0; /* bytes of the pixels */
    uint8_t block[64];
    sha256 s;
    sha256_start(&s);
    memcpy(block, prefix, length);
    memcpy(block + length, pixels, hashed);
    if (length + hashed == 64) sha256_blocks(&s, block, 1);
    for (; hashed + 192 <= size; counted += 192, hashed += 192) {
        sha256_block(&s, pixels + hashed, n, pixels + counted, 0);
        sha256_block(&s, pixels + hashed + 64, n, pixels + counted + 64, 1);
        sha256_block(&s, pixels + hashed + 128, n, pixels + counted + 128, 2);
    }
    count_pixels(n, pixels + counted, (size - counted) / 3);
    if (length + hashed < 64) {
        sha256_end(&s, block, length + hashed, length + size, digest);
        return;
    }
    sha256_blocks(&s, pixels + hashed, (size - hashed) / 64);
    hashed += (size - hashed) / 64 * 64;
    sha256_end(&s, pixels + hashed, size - hashed, length + size, digest);
}
#endif

/* pixels: uint8 [height][width][3]. prefix: hashed before them, at most 63 characters. histogram: int64 [3][256].
 * grey: [32][32]. thumbnail: uint8 [16][16]. digest: SHA-256, 32 bytes. Returns 1; 2 if the digest wasn't computed because
 * the CPU has no instructions for it; or 0 if there was no memory. */
int pixel_facts(const uint8_t *pixels, int height, int width, const char *prefix, int64_t *histogram, double *grey,
                uint8_t *thumbnail, uint8_t *digest) {
    size_t size = 3 * (size_t)height * (size_t)width;
    uint16_t *sums = malloc(sizeof(uint16_t) * 3 * (size_t)width);
    if (!sums) return 0;
    counters n = {{{{0}}}};
    int result = 2;
#if HAS_SHA_CODE
    if (can_sha256()) {
        count_and_hash(&n, pixels, size, prefix, digest);
        result = 1;
    }
#endif
    if (result == 2) count_pixels(&n, pixels, size / 3);
    add_counters(&n, histogram);
    uint8_t square[SQUARE * SQUARE];
    grey_square(pixels, height, width, sums, square);
    halve(square, thumbnail);
    for (int i = 0; i < SQUARE * SQUARE; i++) grey[i] = square[i];
    free(sums);
    return result;
}

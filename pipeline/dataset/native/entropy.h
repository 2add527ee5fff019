/* Headers and Huffman codes of a baseline JPEG: 8 bits, YCbCr, one scan of three components, 4:4:4, 4:2:2, 4:4:0 or 4:2:0.
 * All other images, and above all damaged ones, are left to libjpeg.
 *
 * One table look-up gives the lengths of a code and of its value, and the next look-up depends on nothing else; blocks that
 * aren't wanted are parsed, but handed to nobody. The bytes are hostile: every size is checked before it is used.
 */
#ifndef ENTROPY_H
#define ENTROPY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FAST __attribute__((target_clones("arch=x86-64-v3", "default")))
#define IS_FAST (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
#else
#define FAST
#define IS_FAST 0
#endif

/* Elements of two vectors in a new order. GCC before 12 has a function of its own for it. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif

/* Defines a function that transposes eight vectors of eight elements of 32 bits. mask: the integer vector of that shape. */
#define DEFINE_TRANSPOSE(name, vector, mask)                                                         \
    static inline __attribute__((always_inline)) void name(vector *x) {                               \
        vector y[8], z[8];                                                                             \
        for (int i = 0; i < 8; i += 2) {                                                               \
            y[i] = SHUFFLE(mask, x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);                            \
            y[i + 1] = SHUFFLE(mask, x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);                      \
        }                                                                                              \
        for (int i = 0; i < 8; i += 4)                                                                 \
            for (int j = 0; j < 2; j++) {                                                              \
                z[i + 2 * j] = SHUFFLE(mask, y[i + j], y[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);         \
                z[i + 2 * j + 1] = SHUFFLE(mask, y[i + j], y[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);   \
            }                                                                                          \
        for (int i = 0; i < 4; i++) {                                                                  \
            x[i] = SHUFFLE(mask, z[i], z[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);                            \
            x[i + 4] = SHUFFLE(mask, z[i], z[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);                      \
        }                                                                                              \
    }

enum { LOOK = 10, PARTS = 3, MAX_DC = 11, MAX_AC = 10 };
enum { END_OF_BLOCK = 128, LONG_CODE = 192 }; /* more than a coefficient's number can be */
/* Bytes that may be read after the end of the data: six blocks of 64 * 27 bits, and eight for the buffer. */
enum { MARGIN = 6 * 64 * 27 / 8 + 16 };

/* look[next LOOK bits]: bits 0-5 length of the code and its value together, 8-13 of the code, 16-21 63 minus that of the value,
 * 24-31 coefficients onwards: the run and one more, END_OF_BLOCK, or LONG_CODE for a code longer than LOOK or none. */
typedef struct {
    uint32_t look[1 << LOOK];
    int32_t end[18], first[17]; /* of the codes of each length, aligned to 16 bits; index of its first symbol */
    uint8_t spec[16 + 256];
    int spec_length;
} huffman;

typedef struct {
    int h, v, quantiser, dc, ac;
    int block_left, block_top, block_right, block_bottom; /* decoded part, in blocks of the plane */
    uint8_t *plane;
    size_t stride; /* from column to column */
    int last_dc;
} part;

typedef struct {
    huffman table[2][2]; /* kept from image to image: most photographs have the same */
    int32_t step[4][64]; /* of the quantisers, in natural order */
    int has_table[2][2], has_quantiser[4];
    int ids[PARTS];
    part parts[PARTS];
    int restart, h, v;
} jpeg;

typedef int32_t line_of_coefficients __attribute__((vector_size(32)));

/* The highest bits of `buffer` are consumed next. The first `count` are valid; those below may be valid already, or zero.
 * `next` holds the eight bytes at `at`, loaded well before they are needed. */
typedef struct {
    const uint8_t *at;
    uint64_t buffer, next;
    uint32_t count; /* in the lowest six bits */
} bit_reader;

static const uint8_t ZIGZAG[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                   41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                   30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* Where the coefficient before number k belongs; what lies behind the last one goes to a place of its own. */
enum { NOWHERE = 64, PLACES = NOWHERE + 16 };
static const uint8_t PLACE_BEFORE[64 + LONG_CODE] = {
    NOWHERE, 0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
    7,       14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53,
    60,      61, 54, 47, 55, 62, 63, [65 ... 63 + LONG_CODE] = NOWHERE};

/* --- bits and codes --- */

/* Copies a scan's data without its stuffed bytes, up to a marker. Returns the marker's address and advances *to. */
static const uint8_t *unstuff(const uint8_t *at, const uint8_t *end, uint8_t **to) {
    while (at < end) {
        const uint8_t *stop = memchr(at, 0xFF, end - at);
        size_t length = (stop ? stop : end) - at;
        memcpy(*to, at, length);
        *to += length;
        if (!stop) return end;
        if (end - stop < 2 || stop[1]) return stop;
        *(*to)++ = 0xFF;
        at = stop + 2;
    }
    return end;
}

static inline __attribute__((always_inline)) void look_ahead(bit_reader *b) {
    memcpy(&b->next, b->at, 8);
    b->next = __builtin_bswap64(b->next);
}

/* Refills the buffer to at least 56 bits, without a branch. */
static inline __attribute__((always_inline)) void refill(bit_reader *b) {
    b->count &= 63;
    b->buffer |= b->next >> b->count;
    b->at += (63 - b->count) >> 3;
    b->count |= 56;
    look_ahead(b);
}

/* Returns the signed value in the first bits, of which there are 63 - `unused`; 0 if there are none. Values that start with a
 * 0 bit are negative. */
static inline __attribute__((always_inline)) int value_of(uint64_t bits, uint32_t unused) {
    int64_t flip = ~((int64_t)bits >> 63);
    return (int)((int64_t)((bits ^ (uint64_t)flip) >> 1 >> (unused & 63)) ^ flip) - (int)flip;
}

/* Returns the symbol of a code longer than LOOK, plus its length times 256; -1 if the code doesn't exist. */
static __attribute__((noinline)) int long_code(const huffman *t, uint64_t buffer) {
    int32_t code = (int32_t)(buffer >> 48);
    for (int length = LOOK + 1; length <= 16; length++)
        if (code < t->end[length])
            return length << 8 | t->spec[16 + t->first[length] + ((code - t->end[length - 1]) >> (16 - length))];
    return -1;
}

static int make_table(huffman *t, const uint8_t *spec, int symbols, int is_ac) {
    if (t->spec_length == 16 + symbols && !memcmp(t->spec, spec, 16 + symbols)) return 1;
    t->spec_length = 0;
    for (int k = 0; k < 1 << LOOK; k++) t->look[k] = (uint32_t)LONG_CODE << 24;
    int32_t code = 0;
    int index = 0;
    for (int length = 1; length <= 16; length++) {
        t->first[length] = index;
        for (int i = 0; i < spec[length - 1]; i++, index++) {
            int symbol = spec[16 + index], run = symbol >> 4, size = symbol & 15;
            if (is_ac ? size > MAX_AC : symbol > MAX_DC) return 0;
            if (code >= 1 << length) return 0;
            uint32_t onwards = (uint32_t)(is_ac && !size && run != 15 ? END_OF_BLOCK : is_ac ? run + 1 : 0);
            if (length <= LOOK) {
                int rest = LOOK - length;
                uint32_t entry = onwards << 24 | (uint32_t)(63 - size) << 16 | (uint32_t)length << 8 | (uint32_t)(length + size);
                for (int k = 0; k < 1 << rest; k++) t->look[(code << rest) + k] = entry;
            }
            code++;
        }
        if (code > 1 << length) return 0;
        t->end[length] = code << (16 - length);
        code <<= 1;
    }
    memcpy(t->spec, spec, 16 + symbols);
    t->spec_length = 16 + symbols;
    return 1;
}

/* Consumes the next code and its value. The next look-up depends only on a shift, a load and a shift, because a shift uses
 * the lowest six bits of `entry` alone, as `count` counts in them. */
#define NEXT_COEFFICIENT                                                                                          \
    entry = ac_look[b->buffer >> (64 - LOOK)];                                                                    \
    k += entry >> 24;                                                                                             \
    if (coefficient) coefficient[PLACE_BEFORE[k]] = value_of(b->buffer << (entry >> 8 & 63), entry >> 16);          \
    b->buffer <<= entry & 63;                                                                                     \
    b->count -= entry;

/* Consumes a code that the table hasn't, and its value. Returns size + 16 * run of the symbol, -1 if the code doesn't exist. */
static inline __attribute__((always_inline)) int next_long(bit_reader *b, const huffman *t, int *value) {
    int symbol = long_code(t, b->buffer), length = symbol >> 8, size = symbol & 15;
    if (symbol < 0) return -1;
    *value = value_of(b->buffer << length, (uint32_t)(63 - size));
    b->buffer = b->buffer << length << size;
    b->count -= (uint32_t)(length + size);
    return symbol & 255;
}

/* Reads one block's coefficients (natural order, PLACES of them, zeroed by the caller); skips the block if `coefficient` is
 * NULL. Returns the number of the last coded coefficient plus one, or -1 for invalid codes. Consumes 64 * 27 bits at most. */
static inline __attribute__((always_inline)) int read_block(bit_reader *b, const huffman *dc, const huffman *ac,
                                                            int *last_dc, int32_t *coefficient) {
    const uint32_t *ac_look = ac->look;
    uint32_t entry, k = 1;
    int value;
    refill(b);
    entry = dc->look[b->buffer >> (64 - LOOK)];
    if (entry >> 24 == LONG_CODE) {
        if (next_long(b, dc, &value) < 0) return -1;
    } else {
        value = value_of(b->buffer << (entry >> 8 & 63), entry >> 16);
        b->buffer <<= entry & 63;
        b->count -= entry;
    }
    *last_dc += value;
    if (*last_dc < -32768 || *last_dc > 32767) return -1;
    if (coefficient) coefficient[0] = *last_dc;
    for (;;) {
        for (;;) { /* a code and its value have 27 bits at most, and a refill gives 56 */
            NEXT_COEFFICIENT
            if (k > 63) break;
            refill(b);
            NEXT_COEFFICIENT
            if (k > 63) break;
        }
        if (entry >> 24 == END_OF_BLOCK) return (int)k - END_OF_BLOCK;
        if (entry >> 24 != LONG_CODE) return k > 64 && (entry >> 16 & 63) != 63 ? -1 : 64;
        k -= LONG_CODE;
        refill(b);
        int symbol = next_long(b, ac, &value), size = symbol & 15, run = symbol >> 4;
        if (symbol < 0) return -1;
        if (!size && run != 15) return (int)k;
        k += (uint32_t)run + 1;
        if (k > 64) return size ? -1 : 64;
        if (coefficient) coefficient[PLACE_BEFORE[k]] = value;
        if (k == 64) return 64;
        refill(b);
    }
}

/* Whole bytes of a scan's data, which end at `stop`, that no code has consumed; negative if more were than there are. */
static inline int64_t unread_bytes(const bit_reader *b, const uint8_t *stop) { return (8 * (stop - b->at) + (b->count & 63)) >> 3; }

/* --- headers --- */

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_quantisers(jpeg *s, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (end - at < 65 || *at > 3) return 0; /* 16-bit ones too */
        for (int i = 0; i < 64; i++) s->step[*at][ZIGZAG[i]] = at[1 + i];
        s->has_quantiser[*at] = 1;
        at += 65;
    }
    return 1;
}

static int read_tables(jpeg *s, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int symbols = 0, is_ac = *at >> 4, number = *at & 15;
        if (end - at < 17 || is_ac > 1 || number > 1) return 0;
        for (int i = 1; i <= 16; i++) symbols += at[i];
        if (symbols > 256 || end - at < 17 + symbols) return 0;
        s->has_table[is_ac][number] = 0;
        if (!make_table(&s->table[is_ac][number], at + 1, symbols, is_ac)) return 0;
        s->has_table[is_ac][number] = 1;
        at += 17 + symbols;
    }
    return 1;
}

/* Parses the headers. Returns the start of the scan's data, or NULL if libjpeg is needed. */
static const uint8_t *read_headers(jpeg *s, const uint8_t *at, const uint8_t *end, int height, int width) {
    int has_frame = 0, is_jfif = 0, is_adobe = 0;
    memset(s->has_table, 0, sizeof s->has_table);
    memset(s->has_quantiser, 0, sizeof s->has_quantiser);
    memset(s->ids, 0, sizeof s->ids);
    s->restart = 0;
    for (at += 2;;) {
        if (end - at < 4 || *at++ != 0xFF) return NULL;
        while (at < end && *at == 0xFF) at++;
        if (end - at < 3) return NULL;
        int marker = *at++, length = word(at);
        if (length < 2 || end - at < length) return NULL;
        const uint8_t *body = at + 2;
        at += length;
        length -= 2;
        if (marker == 0xDB) {
            if (!read_quantisers(s, body, at)) return NULL;
        } else if (marker == 0xC4) {
            if (!read_tables(s, body, at)) return NULL;
        } else if (marker == 0xDD) {
            if (length != 2) return NULL;
            s->restart = word(body);
        } else if (marker == 0xE0) {
            is_jfif |= length >= 5 && !memcmp(body, "JFIF", 5);
        } else if (marker == 0xEE && length >= 12 && !memcmp(body, "Adobe", 5)) {
            if (body[11] != 1) return NULL;
            is_adobe = 1;
        } else if (marker == 0xC0 || marker == 0xC1) {
            if (has_frame || length != 6 + 3 * PARTS || body[0] != 8 || body[5] != PARTS) return NULL;
            if (word(body + 1) != height || word(body + 3) != width) return NULL;
            for (int i = 0; i < PARTS; i++) {
                part *p = &s->parts[i];
                s->ids[i] = body[6 + 3 * i];
                p->h = body[7 + 3 * i] >> 4, p->v = body[7 + 3 * i] & 15, p->quantiser = body[8 + 3 * i];
                if (p->quantiser > 3 || p->h < 1 || p->v < 1 || p->h > (i ? 1 : 2) || p->v > (i ? 1 : 2)) return NULL;
            }
            s->h = s->parts[0].h, s->v = s->parts[0].v;
            has_frame = 1;
        } else if (marker == 0xDA) {
            if (!has_frame || length != 4 + 2 * PARTS || body[0] != PARTS) return NULL;
            if (!is_jfif && !is_adobe && (s->ids[0] != 1 || s->ids[1] != 2 || s->ids[2] != 3)) return NULL;
            for (int i = 0; i < PARTS; i++) {
                part *p = &s->parts[i];
                p->dc = body[2 + 2 * i] >> 4, p->ac = body[2 + 2 * i] & 15;
                if (body[1 + 2 * i] != s->ids[i] || p->dc > 1 || p->ac > 1) return NULL;
                if (!s->has_table[0][p->dc] || !s->has_table[1][p->ac] || !s->has_quantiser[p->quantiser]) return NULL;
            }
            return body[7] == 0 && body[8] == 63 && body[9] == 0 ? at : NULL;
        } else if ((marker & 0xF0) != 0xE0 && marker != 0xFE)
            return NULL;
    }
}

/* --- the scan --- */

/* What becomes of a block. coefficient: natural order, not yet multiplied by the steps of the quantiser; last: see
 * read_block. Returns 0 to give the image up. */
typedef int (*block_writer)(const jpeg *s, const part *p, int column, int row, const int32_t *coefficient, int last);

/* Decodes the scan up to the last block that is wanted. Returns the address behind the data that were read, or NULL if a
 * code was invalid, or data were missing. leftover: whole bytes that the codes left over, at most of all intervals between
 * restart markers, the last one's only if the scan was read to its end. room: for the scan's data and MARGIN bytes. */
static inline __attribute__((always_inline)) const uint8_t *read_scan(jpeg *s, const uint8_t *at, const uint8_t *end, int height,
                                                                      int width, uint8_t *room, block_writer write,
                                                                      int64_t *leftover) {
    int across = (width + 8 * s->h - 1) / (8 * s->h), rows = (height + 8 * s->v - 1) / (8 * s->v), last_row = 0;
    for (int i = 0; i < PARTS; i++) {
        int row = (s->parts[i].block_bottom - 1) / s->parts[i].v;
        if (row > last_row) last_row = row;
    }
    if (last_row >= rows) return NULL;
    int left_to_restart = 0, next_restart = 0xD0, is_first = 1;
    bit_reader b = {room, 0, 0, 0};
    uint8_t *stop = room;
    *leftover = 0;
    for (int y = 0; y <= last_row; y++)
        for (int x = 0; x < across; x++) {
            if (!left_to_restart) {
                if (!is_first) {
                    if (unread_bytes(&b, stop) > *leftover) *leftover = unread_bytes(&b, stop);
                    if (end - at < 2 || at[1] != next_restart) return NULL;
                    next_restart = next_restart == 0xD7 ? 0xD0 : next_restart + 1;
                    at += 2;
                }
                stop = room;
                at = unstuff(at, end, &stop);
                memset(stop, 0, MARGIN);
                b = (bit_reader){room, 0, 0, 0};
                look_ahead(&b);
                for (int i = 0; i < PARTS; i++) s->parts[i].last_dc = 0;
                left_to_restart = s->restart ? s->restart : -1;
                is_first = 0;
            }
            left_to_restart--;
            for (int i = 0; i < PARTS; i++) {
                part *p = &s->parts[i];
                const huffman *dc = &s->table[0][p->dc], *ac = &s->table[1][p->ac];
                for (int j = 0; j < p->h * p->v; j++) { /* each factor is 1 or 2 */
                    int column = x * p->h + (j & (p->h - 1)), row = y * p->v + (j >> (p->h - 1));
                    if (row < p->block_top || row >= p->block_bottom || column < p->block_left ||
                        column >= p->block_right) {
                        if (read_block(&b, dc, ac, &p->last_dc, NULL) < 0) return NULL;
                        continue;
                    }
                    int32_t coefficient[PLACES] __attribute__((aligned(32)));
                    for (int k = 0; k < 64; k += 8) *(line_of_coefficients *)(coefficient + k) = (line_of_coefficients){0};
                    int last = read_block(&b, dc, ac, &p->last_dc, coefficient);
                    if (last < 0 || !write(s, p, column, row, coefficient, last)) return NULL;
                }
            }
            if (unread_bytes(&b, stop) < 0) return NULL; /* more bits were consumed than there are */
        }
    if (unread_bytes(&b, stop) > *leftover) *leftover = unread_bytes(&b, stop);
    return at;
}

#endif

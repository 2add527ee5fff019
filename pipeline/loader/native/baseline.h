/* Baseline JPEG in YCbCr -> crop -> antialiased resize -> flip -> RGB, for nearly all photographs: Huffman-coded, 8 bits,
 * one scan of three components, 4:4:4, 4:2:2, 4:4:0 or 4:2:0. All other images, and above all damaged ones, are left to
 * libjpeg, which then decodes or rejects them.
 *
 * Three things make it faster than decoding to pixels and resizing those. One table look-up gives the lengths of a code and
 * of its value, and the next look-up depends on nothing else; blocks outside the crop are parsed, but not transformed; and
 * luma and chroma are resized each at its own resolution, so that only pixels of the output are converted to RGB. Planes are
 * stored column by column, as the second pass of the inverse DCT leaves them, so that all later steps process eight
 * neighbours at a time.
 */

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t lanes_int __attribute__((vector_size(32)));
typedef int16_t lanes_short __attribute__((vector_size(16)));
typedef uint64_t two_words __attribute__((vector_size(16)));
typedef uint8_t bytes_16 __attribute__((vector_size(16))), bytes_32 __attribute__((vector_size(32)));

/* Elements of two vectors in a new order. GCC before 12 has a function of its own for it. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif

enum { USE_LIBJPEG = 6, LOOK = 11, PARTS = 3, MAX_DC = 11, MAX_AC = 10 };
/* Bytes that may be read after the end of the data: six blocks of 64 * 27 bits, and eight for the buffer. */
enum { MARGIN = 6 * 64 * 27 / 8 + 16 };

/* look[next LOOK bits]: bits 0-5 length of the code and its value together, 6-9 run, 10-13 length of the value. 0: the code
 * is longer than LOOK, or there is none. */
typedef struct {
    uint16_t look[1 << LOOK];
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
    float quantiser[4][64];
    int has_table[2][2], has_quantiser[4];
    part parts[PARTS];
    int restart, h, v;
} baseline;

/* The highest bits of `buffer` are consumed next. The first `count` are valid; those below may be valid already, or zero.
 * `next` holds the eight bytes at `at`, loaded well before they are needed. */
typedef struct {
    const uint8_t *at;
    uint64_t buffer, next;
    int count;
} bit_reader;

static const uint8_t ZIGZAG[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                   41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                   30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

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
    b->buffer |= b->next >> b->count;
    b->at += (63 - b->count) >> 3;
    b->count |= 56;
    look_ahead(b);
}

/* Returns the signed value in the first `size` bits; 0 if size is 0. Values that start with a 0 bit are negative. */
static inline __attribute__((always_inline)) int value_of(uint64_t bits, int size) {
    int value = (int)(bits >> 1 >> (63 - size)), is_negative = (int)(~bits >> 63);
    return value - (is_negative * ((1 << size) - 1));
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
    memset(t->look, 0, sizeof t->look);
    int32_t code = 0;
    int index = 0;
    for (int length = 1; length <= 16; length++) {
        t->first[length] = index;
        for (int i = 0; i < spec[length - 1]; i++, index++) {
            int symbol = spec[16 + index], run = symbol >> 4, size = symbol & 15;
            if (is_ac ? size > MAX_AC : symbol > MAX_DC) return 0;
            if (code >= 1 << length) return 0;
            if (!is_ac) run = 0;
            if (length <= LOOK) {
                int rest = LOOK - length;
                for (int k = 0; k < 1 << rest; k++) t->look[(code << rest) + k] = (uint16_t)(length + size + run * 64 + size * 1024);
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

/* Consumes the next code and its value: `bits` starts with the value, `size` and `run` are given by the code. The next
 * look-up depends only on a shift, a load and a shift, because a shift by `entry` uses its lowest six bits. */
#define NEXT_CODE(table)                                      \
    uint32_t entry = table##_look[b->buffer >> (64 - LOOK)];  \
    int size = entry >> 10, run = entry >> 6 & 15;            \
    uint64_t bits;                                            \
    if (__builtin_expect(entry != 0, 1)) {                    \
        bits = b->buffer << ((entry - size) & 63);            \
        b->buffer <<= entry & 63;                             \
        b->count -= entry & 63;                               \
    } else {                                                  \
        int symbol = long_code(table, b->buffer);             \
        if (symbol < 0) return -1;                            \
        size = symbol & 15, run = symbol >> 4 & 15;           \
        bits = b->buffer << (symbol >> 8);                    \
        b->buffer = bits << size;                             \
        b->count -= (symbol >> 8) + size;                     \
    }

#define NEXT_COEFFICIENT                                                      \
    {                                                                         \
        NEXT_CODE(ac)                                                         \
        if (!size) {                                                          \
            if (run != 15) break;                                             \
            k += 16;                                                          \
        } else {                                                              \
            k += run;                                                         \
            if (k > 63) return -1;                                            \
            if (coefficient) coefficient[ZIGZAG[k]] = (int16_t)value_of(bits, size); \
            k++;                                                              \
        }                                                                     \
    }

/* Reads one block's coefficients (natural order, zeroed by the caller); skips the block if `coefficient` is NULL. Returns
 * the number of the last coded coefficient plus one, or -1 for invalid codes. Consumes 64 * 27 bits at most. */
static inline __attribute__((always_inline)) int read_block(bit_reader *b, const huffman *dc, const huffman *ac,
                                                            int *last_dc, int16_t *coefficient) {
    const uint16_t *dc_look = dc->look, *ac_look = ac->look;
    int k = 1;
    refill(b);
    {
        NEXT_CODE(dc)
        (void)run;
        *last_dc += value_of(bits, size);
        if (*last_dc < -32768 || *last_dc > 32767) return -1;
        if (coefficient) coefficient[0] = (int16_t)*last_dc;
    }
    while (k < 64) { /* a code and its value have 26 bits at most */
        NEXT_COEFFICIENT
        if (k > 63) break;
        refill(b);
        NEXT_COEFFICIENT
    }
    return k;
}

/* --- the inverse DCT (Arai, Agui and Nakajima 1988, in floats) --- */

static inline __attribute__((always_inline)) void idct_8(lanes *x) {
    lanes even = x[0] + x[4], odd = x[0] - x[4], sum = x[2] + x[6];
    lanes turn = (x[2] - x[6]) * 1.414213562f - sum;
    lanes a = even + sum, d = even - sum, b = odd + turn, c = odd - turn;
    lanes z13 = x[5] + x[3], z10 = x[5] - x[3], z11 = x[1] + x[7], z12 = x[1] - x[7];
    lanes t7 = z11 + z13, z5 = (z10 + z12) * 1.847759065f;
    lanes t6 = z5 - z10 * 2.613125930f - t7;
    lanes t5 = (z11 - z13) * 1.414213562f - t6;
    lanes t4 = z5 - z12 * 1.082392200f - t5;
    x[0] = a + t7, x[7] = a - t7, x[1] = b + t6, x[6] = b - t6;
    x[2] = c + t5, x[5] = c - t5, x[3] = d + t4, x[4] = d - t4;
}

static inline __attribute__((always_inline)) void transpose_8(lanes *x) {
    lanes y[8], z[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = SHUFFLE(lanes_int, x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = SHUFFLE(lanes_int, x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            z[i + 2 * j] = SHUFFLE(lanes_int, y[i + j], y[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            z[i + 2 * j + 1] = SHUFFLE(lanes_int, y[i + j], y[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = SHUFFLE(lanes_int, z[i], z[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = SHUFFLE(lanes_int, z[i], z[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Eight bytes <-> eight floats. Written out, because the compiler uses eight registers for the conversion otherwise. */
static inline __attribute__((always_inline)) lanes read_8(const uint8_t *from) {
    const bytes_16 zero = {0};
    two_words pair = {0, 0};
    memcpy(&pair, from, 8);
    lanes_short shorts = (lanes_short)SHUFFLE(bytes_16, (bytes_16)pair, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                              22, 7, 23);
    return __builtin_convertvector(__builtin_convertvector(shorts, lanes_int), lanes);
}

static inline __attribute__((always_inline)) void write_8(uint8_t *to, lanes value) {
    const lanes most = {255, 255, 255, 255, 255, 255, 255, 255};
    lanes_int above = value > most, inside = value > 0.0f;
    lanes clamped = (lanes)((above & (lanes_int)most) | (~above & inside & (lanes_int)value));
    bytes_32 words = (bytes_32)__builtin_convertvector(clamped, lanes_int);
    lanes_int whole = (lanes_int)SHUFFLE(bytes_32, words, words, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 16, 20,
                                         24, 28, 16, 20, 24, 28, 16, 20, 24, 28, 16, 20, 24, 28);
    int32_t halves[2] = {whole[0], whole[4]};
    memcpy(to, halves, 8);
}

static inline __attribute__((always_inline)) void write_block(const int16_t *coefficient, const float *quantiser, int last,
                                                              uint8_t *to, size_t stride) {
    lanes x[8];
    if (last <= 1) {
        lanes flat = {0};
        flat += (float)coefficient[0] * quantiser[0] + 128.5f;
        for (int i = 0; i < 8; i++) write_8(to + i * stride, flat);
        return;
    }
    for (int i = 0; i < 8; i++) {
        lanes_short line;
        lanes factor;
        memcpy(&line, coefficient + 8 * i, sizeof line);
        memcpy(&factor, quantiser + 8 * i, sizeof factor);
        x[i] = __builtin_convertvector(__builtin_convertvector(line, lanes_int), lanes) * factor;
    }
    idct_8(x);
    transpose_8(x);
    idct_8(x);
    for (int i = 0; i < 8; i++) write_8(to + i * stride, x[i] + 128.5f);
}

/* --- headers --- */

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_quantisers(baseline *s, const uint8_t *at, const uint8_t *end) {
    static const double SCALE[8] = {1.0, 1.387039845, 1.306562965, 1.175875602, 1.0, 0.785694958, 0.541196100, 0.275899379};
    while (at < end) {
        if (end - at < 65 || *at > 3) return 0; /* 16-bit ones too */
        for (int i = 0; i < 64; i++) {
            int place = ZIGZAG[i];
            s->quantiser[*at][place] = (float)(at[1 + i] * SCALE[place >> 3] * SCALE[place & 7] / 8);
        }
        s->has_quantiser[*at] = 1;
        at += 65;
    }
    return 1;
}

static int read_tables(baseline *s, const uint8_t *at, const uint8_t *end) {
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
static const uint8_t *read_headers(baseline *s, const uint8_t *at, const uint8_t *end, int height, int width) {
    int ids[PARTS] = {0}, has_frame = 0, is_jfif = 0, is_adobe = 0;
    memset(s->has_table, 0, sizeof s->has_table);
    memset(s->has_quantiser, 0, sizeof s->has_quantiser);
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
                ids[i] = body[6 + 3 * i];
                p->h = body[7 + 3 * i] >> 4, p->v = body[7 + 3 * i] & 15, p->quantiser = body[8 + 3 * i];
                if (p->quantiser > 3 || p->h < 1 || p->v < 1 || p->h > (i ? 1 : 2) || p->v > (i ? 1 : 2)) return NULL;
            }
            s->h = s->parts[0].h, s->v = s->parts[0].v;
            has_frame = 1;
        } else if (marker == 0xDA) {
            if (!has_frame || length != 4 + 2 * PARTS || body[0] != PARTS) return NULL;
            if (!is_jfif && !is_adobe && (ids[0] != 1 || ids[1] != 2 || ids[2] != 3)) return NULL;
            for (int i = 0; i < PARTS; i++) {
                part *p = &s->parts[i];
                p->dc = body[2 + 2 * i] >> 4, p->ac = body[2 + 2 * i] & 15;
                if (body[1 + 2 * i] != ids[i] || p->dc > 1 || p->ac > 1) return NULL;
                if (!s->has_table[0][p->dc] || !s->has_table[1][p->ac] || !s->has_quantiser[p->quantiser]) return NULL;
            }
            return body[7] == 0 && body[8] == 63 && body[9] == 0 ? at : NULL;
        } else if ((marker & 0xF0) != 0xE0 && marker != 0xFE)
            return NULL;
    }
}

/* --- the scan --- */

/* Decodes the scan up to the last block of the crop. Returns whether all codes were valid.
 * room: for the scan's data and MARGIN bytes. */
FAST static int read_scan(baseline *s, const uint8_t *at, const uint8_t *end, int height, int width, uint8_t *room) {
    int across = (width + 8 * s->h - 1) / (8 * s->h), rows = (height + 8 * s->v - 1) / (8 * s->v), last_row = 0;
    for (int i = 0; i < PARTS; i++) {
        int row = (s->parts[i].block_bottom - 1) / s->parts[i].v;
        if (row > last_row) last_row = row;
    }
    if (last_row >= rows) return 0;
    int left_to_restart = 0, next_restart = 0xD0, is_first = 1;
    bit_reader b = {room, 0, 0, 0};
    uint8_t *stop = room;
    for (int y = 0; y <= last_row; y++)
        for (int x = 0; x < across; x++) {
            if (!left_to_restart) {
                if (!is_first) {
                    if (end - at < 2 || at[1] != next_restart) return 0;
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
                for (int j = 0; j < p->h * p->v; j++) {
                    int column = x * p->h + j % p->h, row = y * p->v + j / p->h;
                    if (row < p->block_top || row >= p->block_bottom || column < p->block_left ||
                        column >= p->block_right) {
                        if (read_block(&b, dc, ac, &p->last_dc, NULL) < 0) return 0;
                        continue;
                    }
                    int16_t coefficient[64] __attribute__((aligned(32))) = {0};
                    int last = read_block(&b, dc, ac, &p->last_dc, coefficient);
                    if (last < 0) return 0;
                    uint8_t *to = p->plane + 8 * (size_t)(column - p->block_left) * p->stride + 8 * (size_t)(row - p->block_top);
                    write_block(coefficient, s->quantiser[p->quantiser], last, to, p->stride);
                }
            }
            if (8 * (b.at - stop) > b.count) return 0; /* more bits were consumed than there are */
        }
    return 1;
}

/* --- resize and colour --- */

static int clamped(int value, int limit) { return value < 0 ? 0 : value < limit ? value : limit - 1; }

/* The filter for a plane of half the resolution: as if it were first doubled the way libjpeg does, then filtered by `full`.
 * is_fancy: three quarters of the nearer sample and one of the farther, else each sample twice. */
static int halve_filter(filter *half, const filter *full, int size, int limit, int is_fancy) {
    const float nearer = is_fancy ? 0.75f : 1.0f;
    half->most = full->most / 2 + 3;
    half->start = malloc(sizeof(int) * size);
    half->count = malloc(sizeof(int) * size);
    half->weight = calloc((size_t)size * half->most, sizeof(float));
    half->first = limit;
    half->last = 0;
    if (!half->start || !half->count || !half->weight) return NO_MEMORY;
    for (int i = 0; i < size; i++) {
        int from = full->start[i], to = from + full->count[i];
        int first = clamped((from - 1) >> 1, limit), last = clamped(to >> 1, limit);
        float *weight = half->weight + (size_t)i * half->most;
        for (int k = from; k < to; k++) {
            float share = full->weight[(size_t)i * full->most + k - from];
            weight[clamped(k >> 1, limit) - first] += nearer * share;
            weight[clamped(k & 1 ? (k >> 1) + 1 : (k >> 1) - 1, limit) - first] += (1 - nearer) * share;
        }
        half->start[i] = first;
        half->count[i] = last - first + 1;
        if (first < half->first) half->first = first;
        if (last + 1 > half->last) half->last = last + 1;
    }
    return OK;
}

/* Horizontally: plane -> out, float [rows, rounded up to 8][width], width a multiple of 8. */
FAST static void resize_columns(float *out, int width, const part *p, const filter *f, int first_row, int rows, int size,
                                int flip) {
    const uint8_t *plane = p->plane + first_row - 8 * p->block_top;
    for (int x = 0; x < width; x += 8)
        for (int y = 0; y < rows; y += 8) {
            lanes sum[8];
            for (int j = 0; j < 8; j++) {
                lanes total = {0};
                int place = x + j < size ? (flip ? size - 1 - (x + j) : x + j) : 0;
                const float *weight = f->weight + (size_t)place * f->most;
                const uint8_t *from = plane + (size_t)(f->start[place] - 8 * p->block_left) * p->stride + y;
                for (int k = 0; k < f->count[place]; k++) total += read_8(from + k * p->stride) * weight[k];
                sum[j] = total;
            }
            transpose_8(sum);
            for (int j = 0; j < 8; j++) memcpy(out + (size_t)(y + j) * width + x, &sum[j], sizeof sum[j]);
        }
}

static inline __attribute__((always_inline)) lanes add_lines(const float *lines, int width, const float *weight, int count) {
    lanes total = {0};
    for (int k = 0; k < count; k++) {
        lanes value;
        memcpy(&value, lines + (size_t)k * width, sizeof value);
        total += value * weight[k];
    }
    return total;
}

/* Vertically, and to RGB (JFIF's formula). lines: of each part, as from resize_columns; colour: room for 3 * width. */
FAST static void resize_lines(uint8_t *out, float *const *lines, int width, const filter *f, int size, uint8_t *colour) {
    uint8_t *red = colour, *green = colour + width, *blue = colour + 2 * width;
    for (int y = 0; y < size; y++) {
        for (int x = 0; x < width; x += 8) {
            lanes value[PARTS];
            for (int i = 0; i < PARTS; i++)
                value[i] = add_lines(lines[i] + (size_t)(f[i].start[y] - f[i].first) * width + x, width,
                                     f[i].weight + (size_t)y * f[i].most, f[i].count[y]);
            lanes luma = value[0] + 0.5f, b = value[1] - 128.0f, r = value[2] - 128.0f;
            write_8(red + x, luma + 1.402f * r);
            write_8(green + x, luma - 0.344136f * b - 0.714136f * r);
            write_8(blue + x, luma + 1.772f * b);
        }
        uint8_t *restrict to = out + (size_t)3 * size * y;
        for (int x = 0; x < size; x++) {
            to[3 * x] = red[x];
            to[3 * x + 1] = green[x];
            to[3 * x + 2] = blue[x];
        }
    }
}

/* Returns OK, NO_MEMORY, or USE_LIBJPEG for an image that this decoder doesn't handle. */
static int decode_baseline(baseline *s, const uint8_t *data, size_t length, const view *v, int size, uint8_t *out) {
    const uint8_t *end = data + length, *scan = read_headers(s, data, end, v->height, v->width);
    if (!scan) return USE_LIBJPEG;
    filter across[PARTS] = {{0}}, down[PARTS] = {{0}};
    float *lines[PARTS] = {NULL};
    int width = (size + 7) & ~7, status = NO_MEMORY;
    uint8_t *colour = malloc(3 * (size_t)width), *room = malloc((size_t)(end - scan) + MARGIN);
    for (int i = 0; i < PARTS; i++) s->parts[i].plane = NULL;
    if (!colour || !room) goto end;
    for (int i = 0; i < PARTS; i++) {
        part *p = &s->parts[i];
        int halves_width = s->h != p->h, halves_height = s->v != p->v;
        int is_fancy = !halves_width || (v->width + 1) / 2 > 2; /* jdsample.c: planes of one or two columns aren't */
        if (halves_width ? halve_filter(&across[i], &across[0], size, (v->width + 1) / 2, is_fancy)
                         : make_filter(&across[i], v->left, v->box_width, v->full_width, v->out_left, size, v->width))
            goto end;
        if (halves_height ? halve_filter(&down[i], &down[0], size, (v->height + 1) / 2, is_fancy)
                          : make_filter(&down[i], v->top, v->box_height, v->full_height, v->out_top, size, v->height))
            goto end;
        p->block_left = across[i].first / 8, p->block_right = (across[i].last + 7) / 8;
        p->block_top = down[i].first / 8, p->block_bottom = (down[i].last + 7) / 8;
        p->stride = 8 * (size_t)(p->block_bottom - p->block_top);
        int rows = (down[i].last - down[i].first + 7) & ~7;
        p->plane = malloc(p->stride * 8 * (size_t)(p->block_right - p->block_left) + 8); /* + 8: columns are read by eights */
        lines[i] = malloc(sizeof(float) * (size_t)rows * width);
        if (!p->plane || !lines[i]) goto end;
    }
    status = USE_LIBJPEG;
    if (!read_scan(s, scan, end, v->height, v->width, room)) goto end;
    for (int i = 0; i < PARTS; i++)
        resize_columns(lines[i], width, &s->parts[i], &across[i], down[i].first, down[i].last - down[i].first, size, v->flip);
    resize_lines(out, lines, width, down, size, colour);
    status = OK;
end:
    for (int i = 0; i < PARTS; i++) {
        free_filter(&across[i]);
        free_filter(&down[i]);
        free(lines[i]);
        free(s->parts[i].plane);
    }
    free(colour);
    free(room);
    return status;
}

/* Baseline JPEG -> all of its pixels in RGB, the same to the bit as libjpeg-turbo's: its exact inverse DCT ("islow", Loeffler,
 * Ligtenberg and Moschytz 1989, in integers), chroma doubled by its triangle filter ("fancy upsampling"), JFIF's formula.
 *
 * An image of which libjpeg-turbo would warn, and one whose values would overflow its 16-bit arithmetic, is left to it.
 */

typedef uint32_t words __attribute__((vector_size(32))); /* unsigned: sums wrap around in between, as libjpeg-turbo's */
typedef int32_t signed_words __attribute__((vector_size(32)));
typedef int16_t pairs __attribute__((vector_size(32)));

enum { MOST_EXACT = 16384 }; /* the sum of two such values fits in 16 bits */

/* --- the inverse DCT --- */

/* One dimension of eight lines or columns at once. `bits`: of the results that are rounded away; `offset`: added to them. */
static inline __attribute__((always_inline)) void exact_idct_8(words *x, int bits, uint32_t offset) {
    words even = (x[2] + x[6]) * 4433, sum = (x[0] + x[4]) << 13, difference = (x[0] - x[4]) << 13, half = {0};
    words low = even - x[6] * 15137, high = even + x[2] * 6270;
    half += (1u << (bits - 1)) + (offset << bits);
    sum += half, difference += half;
    words a = sum + high, d = sum - high, b = difference + low, c = difference - low;
    words outer = (x[7] + x[1]) * 7373, inner = (x[5] + x[3]) * 20995, both = (x[7] + x[3] + x[5] + x[1]) * 9633;
    words z3 = both - (x[7] + x[3]) * 16069, z4 = both - (x[5] + x[1]) * 3196;
    words t0 = x[7] * 2446 - outer + z3, t1 = x[5] * 16819 - inner + z4;
    words t2 = x[3] * 25172 - inner + z3, t3 = x[1] * 12299 - outer + z4;
    const words sums[8] = {a + t3, b + t2, c + t1, d + t0, d - t0, c - t1, b - t2, a - t3};
    for (int i = 0; i < 8; i++) x[i] = (words)((signed_words)sums[i] >> bits);
}

DEFINE_TRANSPOSE(transpose_words, words, words)

/* Whether all values lie from -MOST_EXACT to MOST_EXACT - 1. */
static inline __attribute__((always_inline)) int are_exact(const words *x) {
    words high = {0};
    for (int i = 0; i < 8; i++) high |= x[i] + MOST_EXACT;
    high &= ~(2u * MOST_EXACT - 1);
    uint64_t parts[4];
    memcpy(parts, &high, sizeof parts);
    return !(parts[0] | parts[1] | parts[2] | parts[3]);
}

/* Two values each of 16 bits, the second in the upper half, clamped to 0 to 255. */
static inline __attribute__((always_inline)) words clamp_pairs(words first, words second) {
    pairs v = (pairs)((first & 0xFFFF) | second << 16), most = {0}, none = {0};
    most += 255;
    v = (v & (v > none)) | (most & (v > most));
    return (words)(v & most);
}

FAST static __attribute__((noinline)) int write_exactly(const jpeg *s, const part *p, int column, int row,
                                                               const int32_t *coefficient, int last) {
    const int32_t *step = s->step[p->quantiser];
    uint8_t *to = p->plane + 8 * (size_t)row * p->stride + 8 * (size_t)column;
    if (last <= 1) {
        int value = coefficient[0] * step[0];
        if (4 * value >= MOST_EXACT || 4 * value < -MOST_EXACT) return 0; /* as after the first pass */
        value = ((value + 4) >> 3) + 128;
        value = value < 0 ? 0 : value > 255 ? 255 : value;
        for (int i = 0; i < 8; i++) memset(to + i * p->stride, value, 8);
        return 1;
    }
    words x[8];
    for (int i = 0; i < 8; i++) {
        words line, factor;
        memcpy(&line, coefficient + 8 * i, sizeof line);
        memcpy(&factor, step + 8 * i, sizeof factor);
        x[i] = line * factor;
    }
    if (!are_exact(x)) return 0;
    exact_idct_8(x, 11, 0);
    if (!are_exact(x)) return 0;
    transpose_words(x);
    exact_idct_8(x, 18, 128);
    words left = clamp_pairs(x[0], x[2]) | clamp_pairs(x[1], x[3]) << 8;
    words right = clamp_pairs(x[4], x[6]) | clamp_pairs(x[5], x[7]) << 8;
    const words rows[2] = {SHUFFLE(words, left, right, 0, 8, 1, 9, 2, 10, 3, 11), SHUFFLE(words, left, right, 4, 12, 5, 13, 6, 14, 7, 15)};
    uint64_t lines[8];
    memcpy(lines, rows, sizeof lines);
    for (int i = 0; i < 8; i++) memcpy(to + i * p->stride, lines + i, 8);
    return 1;
}

/* --- the scan, and what libjpeg-turbo would complain of --- */

/* Whether libjpeg takes the table: it reserves the code of ones alone, and ours doesn't. */
static int is_whole_table(const huffman *t) {
    int32_t code = 0;
    for (int length = 1; length <= 16; length++) {
        code += t->spec[length - 1];
        if (t->spec[length - 1] && code >= 1 << length) return 0;
        code <<= 1;
    }
    return 1;
}

static int is_ordinary(const jpeg *s) {
    if (s->ids[0] == s->ids[1] || s->ids[0] == s->ids[2] || s->ids[1] == s->ids[2]) return 0;
    for (int i = 0; i < PARTS; i++)
        if (!is_whole_table(&s->table[0][s->parts[i].dc]) || !is_whole_table(&s->table[1][s->parts[i].ac])) return 0;
    return s->h == 2 || s->v == 1; /* 4:4:0 is rare */
}

/* Decodes the scan into planes. Returns whether it is whole: no byte is missing or left over, and the image's end follows. */
FAST static int read_exact_planes(jpeg *s, const uint8_t *at, const uint8_t *end, int height, int width, uint8_t *room) {
    int64_t leftover;
    at = read_scan(s, at, end, height, width, room, write_exactly, &leftover);
    return at && leftover == 0 && end - at >= 2 && at[0] == 0xFF && at[1] == 0xD9;
}

/* --- colour --- */

/* Doubles a line of chroma. sums: `count` values of 0 to 1020, the first and last once more around them; out: 2 * count. */
static inline __attribute__((always_inline)) void double_line(uint8_t *restrict out, const uint16_t *restrict sums, int count,
                                                              int bits, uint16_t up, uint16_t down) {
    for (int i = 0; i < count; i++) {
        uint16_t middle = (uint16_t)(3 * sums[i + 1]);
        uint16_t left = (uint16_t)(middle + sums[i] + up), right = (uint16_t)(middle + sums[i + 2] + down);
        out[2 * i] = (uint8_t)(left >> bits);
        out[2 * i + 1] = (uint8_t)(right >> bits);
    }
}

/* One line of chroma at the resolution of luma. sums: room for a line. */
static inline __attribute__((always_inline)) void chroma_line(const jpeg *s, const part *p, int y, int height, int width,
                                                              uint16_t *restrict sums, uint8_t *restrict out) {
    int rows = (height + s->v - 1) / s->v, count = (width + s->h - 1) / s->h, row = y / s->v;
    const uint8_t *near = p->plane + (size_t)row * p->stride;
    if (s->h == 1) {
        memcpy(out, near, width);
        return;
    }
    if (count <= 2) { /* jdsample.c: planes of one or two columns aren't doubled smoothly */
        for (int x = 0; x < 2 * count; x++) out[x] = near[x / 2];
        return;
    }
    int other = s->v == 1 ? row : y % 2 ? row + 1 : row - 1;
    const uint8_t *far = p->plane + (size_t)(other < 0 ? 0 : other < rows ? other : rows - 1) * p->stride;
    for (int i = 0; i < count; i++) sums[i + 1] = s->v == 1 ? near[i] : (uint16_t)(3 * near[i] + far[i]);
    sums[0] = sums[1];
    sums[count + 1] = sums[count];
    if (s->v == 1)
        double_line(out, sums, count, 2, 1, 2);
    else
        double_line(out, sums, count, 4, 8, 7);
}

static inline int16_t clamp(int16_t value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

/* JFIF's formula as libjpeg computes it, y + 1.402 * red and so on in 16ths of bits, each rounded; here mostly by products of
 * 16 bits, of which the upper half is kept: floor(x + 1/2) = floor((floor(2 * x) + 1) / 2). Chroma is replaced by colour. */
static inline __attribute__((always_inline)) void to_colour(const uint8_t *restrict luma, uint8_t *restrict blue, uint8_t *restrict red,
                                                            uint8_t *restrict green, int width) {
    for (int x = 0; x < width; x++) {
        int cb = blue[x] - 128, cr = red[x] - 128;
        green[x] = (uint8_t)clamp((int16_t)(luma[x] + ((-22554 * cb - 46802 * cr + 32768) >> 16)));
    }
    for (int x = 0; x < width; x++) {
        int16_t cr = (int16_t)(red[x] - 128), half = (int16_t)((int16_t)(2 * cr) * 26345 >> 16);
        red[x] = (uint8_t)clamp((int16_t)(luma[x] + cr + ((int16_t)(half + 1) >> 1)));
    }
    for (int x = 0; x < width; x++) {
        int16_t cb = (int16_t)(blue[x] - 128), half = (int16_t)((int16_t)(2 * cb) * -14942 >> 16);
        blue[x] = (uint8_t)clamp((int16_t)(luma[x] + 2 * cb + ((int16_t)(half + 1) >> 1)));
    }
}

/* The planes in RGB. lines: room for three lines, each two bytes longer than the image; sums: for half of one and two more. */
FAST static void write_rgb(const jpeg *s, int height, int width, uint8_t *lines, uint16_t *sums, uint8_t *out) {
    uint8_t *blue = lines, *red = blue + width + 2, *green = red + width + 2;
    for (int y = 0; y < height; y++) {
        chroma_line(s, &s->parts[1], y, height, width, sums, blue);
        chroma_line(s, &s->parts[2], y, height, width, sums, red);
        to_colour(s->parts[0].plane + (size_t)y * s->parts[0].stride, blue, red, green, width);
        const uint8_t *restrict r = red, *restrict g = green, *restrict b = blue;
        uint8_t *restrict to = out + 3 * (size_t)width * y;
        for (int x = 0; x < width; x++) to[3 * x] = r[x], to[3 * x + 1] = g[x], to[3 * x + 2] = b[x];
    }
}

/* Returns whether the image was decoded. height, width: at most MAX_SIDE each. out: uint8 [height][width][3]. */
static int decode_whole(jpeg *s, const uint8_t *data, size_t length, int height, int width, uint8_t *out) {
    const uint8_t *end = data + length, *scan = read_headers(s, data, end, height, width);
    if (!scan || !is_ordinary(s)) return 0;
    size_t total = 0, places[PARTS], line = (size_t)width + 2;
    for (int i = 0; i < PARTS; i++) {
        part *p = &s->parts[i];
        int across = i ? (width + s->h - 1) / s->h : width, down = i ? (height + s->v - 1) / s->v : height;
        p->block_left = p->block_top = 0;
        p->block_right = (across + 7) / 8, p->block_bottom = (down + 7) / 8;
        p->stride = 8 * (size_t)p->block_right;
        places[i] = total;
        total += p->stride * 8 * (size_t)p->block_bottom;
    }
    uint8_t *planes = malloc(total + 5 * line + (size_t)(end - scan) + MARGIN);
    if (!planes) return 0;
    for (int i = 0; i < PARTS; i++) s->parts[i].plane = planes + places[i];
    uint16_t *sums = (uint16_t *)(planes + total); /* planes are multiples of 64 bytes */
    uint8_t *lines = planes + total + 2 * line, *room = lines + 3 * line;
    int is_whole = read_exact_planes(s, scan, end, height, width, room);
    if (is_whole) write_rgb(s, height, width, lines, sums, out);
    free(planes);
    return is_whole;
}

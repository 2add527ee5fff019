/* JPEG -> crop -> antialiased resize -> flip -> uint8 batch, decoding only the pixels of the crop.
 *
 * baseline.h decodes nearly all photographs. libjpeg-turbo decodes the other ones, damaged ones, and those that are to be
 * decoded in full (evaluation): only the rows and columns of the crop, at 1/2, 1/4 or 1/8 where the crop then still has at
 * least 1.5 times the output's size; the detail that is lost, the resize would remove as well. Both resize with a triangle
 * filter whose width follows the scale, as PIL and torchvision (antialias=True) define it.
 *
 * The bytes are hostile: every size is checked before it is used, and every error of libjpeg ends in `decode_one`.
 * Floats are added in one order and never contracted (-ffp-contract=off), so all CPUs give the same pixels.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "../../dataset/native/entropy.h"

enum { OK = 0, DAMAGED = 1, UNSUPPORTED = 2, OTHER_SIZE = 3, NO_MEMORY = 4, BAD_BOX = 5 };
enum { CHANNELS = 3, MAX_SIDE = 65500, MAX_SIZE = 8192, SMALL = 32 };
/* An image of MAX_SIDE x 1 whose shorter side is resized to MAX_SIZE; only the output's part of it is ever computed. */
enum { MAX_FULL = MAX_SIDE * MAX_SIZE };
typedef float pixel __attribute__((vector_size(16)));
typedef int32_t integers __attribute__((vector_size(16)));

/* Geometry of one image, in pixels. The box is resized to full_height x full_width; the output is the part of
 * out_size x out_size at (out_top, out_left). */
typedef struct {
    int32_t height, width;
    int32_t top, left, box_height, box_width;
    int32_t full_height, full_width, out_top, out_left;
    int32_t flip;
} view;

/* The weights of one direction: output i is the sum of weight[i * most + k] * input[start[i] + k], k < count[i]. */
typedef struct {
    int *start, *count, most, first, last;
    float *weight;
} filter;

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf jump;
    int missing;
} errors;

static void on_error(j_common_ptr info) { longjmp(((errors *)info->err)->jump, 1); }

static void on_message(j_common_ptr info, int level) {
    int code = info->err->msg_code;
    if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) ((errors *)info->err)->missing = 1;
}

static void free_filter(filter *f) {
    free(f->start);
    free(f->count);
    free(f->weight);
    memset(f, 0, sizeof *f);
}

/* outputs `out_start` .. `out_start + out_size` of a resize of [start, start + length) to `full` outputs; inputs are
 * the whole pixels that it touches, within [0, limit). */
static int make_filter(filter *f, double start, double length, int full, int out_start, int out_size, int limit) {
    double scale = length / full, reach = scale > 1 ? scale : 1;
    int low = (int)start, high = (int)(start + length);
    if (high < start + length) high++;
    if (high > limit) high = limit;
    f->most = (int)(2 * reach) + 3;
    f->start = malloc(sizeof(int) * out_size);
    f->count = malloc(sizeof(int) * out_size);
    f->weight = malloc(sizeof(float) * out_size * (size_t)f->most);
    f->first = limit;
    f->last = 0;
    if (!f->start || !f->count || !f->weight) return NO_MEMORY;
    for (int i = 0; i < out_size; i++) {
        double centre = start + (out_start + i + 0.5) * scale, total = 0;
        int from = (int)(centre - reach + 0.5), to = (int)(centre + reach + 0.5);
        if (centre - reach + 0.5 < low) from = low;
        if (to > high) to = high;
        if (from > high - 1) from = high - 1;
        if (to <= from) to = from + 1;
        if (to - from > f->most) to = from + f->most;
        float *weight = f->weight + (size_t)i * f->most;
        for (int k = 0; k < to - from; k++) {
            double distance = (from + k + 0.5 - centre) / reach;
            if (distance < 0) distance = -distance;
            weight[k] = distance < 1 ? (float)(1 - distance) : 0;
            total += weight[k];
        }
        for (int k = 0; k < to - from; k++) weight[k] = total > 0 ? (float)(weight[k] / total) : 1.0f / (to - from);
        f->start[i] = from;
        f->count[i] = to - from;
        if (from < f->first) f->first = from;
        if (to > f->last) f->last = to;
    }
    return OK;
}

#include "baseline.h"

/* sum[i] = weight[0] * rows[0][i] + weight[1] * rows[1][i] + ..., a few rows at a time. */
FAST static void add_rows(float *restrict sum, const uint8_t *restrict row, size_t stride, const float *restrict weight,
                          int taps, int count) {
    int k = 0;
    if (taps == 1) {
        for (int i = 0; i < count; i++) sum[i] = weight[0] * (float)row[i];
        return;
    }
    if (taps % 2) {
        const uint8_t *b = row + stride, *c = b + stride;
        for (int i = 0; i < count; i++)
            sum[i] = weight[0] * (float)row[i] + weight[1] * (float)b[i] + weight[2] * (float)c[i];
        k = 3;
    } else {
        const uint8_t *b = row + stride;
        for (int i = 0; i < count; i++) sum[i] = weight[0] * (float)row[i] + weight[1] * (float)b[i];
        k = 2;
    }
    for (; k < taps; k += 2) {
        const uint8_t *a = row + stride * (size_t)k, *b = a + stride;
        for (int i = 0; i < count; i++) sum[i] += weight[k] * (float)a[i] + weight[k + 1] * (float)b[i];
    }
}

FAST static void resize_row(uint8_t *restrict out, const float *restrict row, const filter *f, int size, int flip) {
    for (int x = 0; x < size; x++) {
        const float *weight = f->weight + (size_t)x * f->most;
        const float *from = row + (size_t)(f->start[x] - f->first) * CHANNELS;
        pixel sum = {0.5f, 0.5f, 0.5f, 0.5f};
        for (int k = 0; k < f->count[x]; k++) {
            pixel value; /* RGB, and the next pixel's red, which is ignored */
            memcpy(&value, from + (size_t)k * CHANNELS, sizeof value);
            sum += weight[k] * value;
        }
        uint8_t *to = out + 3 * (size_t)(flip ? size - 1 - x : x);
        integers whole = __builtin_convertvector(sum, integers); /* below 256: the weights add up to 1 */
        to[0] = (uint8_t)whole[0];
        to[1] = (uint8_t)whole[1];
        to[2] = (uint8_t)whole[2];
    }
}

static int is_bad(const view *v, int size) {
    return v->height < 1 || v->width < 1 || v->height > MAX_SIDE || v->width > MAX_SIDE || v->top < 0 || v->left < 0 ||
           v->box_height < 1 || v->box_width < 1 || v->top > v->height - v->box_height ||
           v->left > v->width - v->box_width || size < 1 || size > MAX_SIZE || v->full_height > MAX_FULL ||
           v->full_width > MAX_FULL || v->out_top < 0 || v->out_left < 0 || v->out_top > v->full_height - size ||
           v->out_left > v->full_width - size;
}

/* Returns 1, 2, 4 or 8: the largest reduction at which the box keeps 1.5 times the size that it is resized to. */
static int shrink_of(const view *v) {
    int shrink = 1;
    while (shrink < 8 && v->box_height / (3 * shrink) >= v->full_height && v->box_width / (3 * shrink) >= v->full_width)
        shrink *= 2;
    return shrink;
}

/* state: NULL to leave all to libjpeg. */
static int decode_one(baseline *state, const uint8_t *data, size_t length, const view *v, int size, int scaled,
                      uint8_t *out) {
    struct jpeg_decompress_struct info;
    errors handler;
    /* Changed after setjmp and used after a longjmp, hence volatile. */
    filter *volatile filters = NULL;
    uint8_t *volatile rows = NULL;
    float *volatile sum = NULL;
    volatile int status = DAMAGED;

    if (is_bad(v, size)) return BAD_BOX;
    if (length < 4 || data[0] != 0xFF || data[1] != 0xD8) return UNSUPPORTED;
    const int shrink = scaled ? shrink_of(v) : 1;
    if (state && scaled && shrink == 1) {
        int by_us = decode_baseline(state, data, length, v, size, out);
        if (by_us != USE_LIBJPEG) return by_us;
    }
    memset(&info, 0, sizeof info);
    info.err = jpeg_std_error(&handler.base);
    handler.base.error_exit = on_error;
    handler.base.emit_message = on_message;
    handler.missing = 0;
    if (setjmp(handler.jump)) goto end;
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, length);
    jpeg_read_header(&info, TRUE);
    if (info.jpeg_color_space != JCS_YCbCr && info.jpeg_color_space != JCS_RGB &&
        info.jpeg_color_space != JCS_GRAYSCALE) {
        status = UNSUPPORTED;
        goto end;
    }
    if ((int)info.image_height != v->height || (int)info.image_width != v->width) {
        status = OTHER_SIZE;
        goto end;
    }
    info.scale_num = 1;
    info.scale_denom = shrink;
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    info.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&info);

    status = NO_MEMORY;
    filters = calloc(2, sizeof(filter));
    if (!filters) goto end;
    filter *across = &filters[0], *down = &filters[1];
    if (make_filter(across, (double)v->left / shrink, (double)v->box_width / shrink, v->full_width, v->out_left, size,
                    info.output_width) ||
        make_filter(down, (double)v->top / shrink, (double)v->box_height / shrink, v->full_height, v->out_top, size,
                    info.output_height))
        goto end;

    JDIMENSION left = across->first, width = across->last - across->first;
    /* At the edge of a crop libjpeg upsamples chroma as at that of an image, and of a narrow crop not smoothly at all. So
     * small images, in which a crop's edge matters and which cost nothing, are decoded in full. */
    if (info.output_width <= SMALL) left = 0, width = info.output_width;
    if (width < info.output_width) jpeg_crop_scanline(&info, &left, &width); /* moves `left` to a block's edge */
    int count = down->last - down->first, skip = across->first - (int)left;
    size_t stride = (size_t)info.output_width * CHANNELS;
    rows = malloc(stride * count);
    sum = calloc((size_t)CHANNELS * (size_t)(across->last - across->first) + 1, sizeof(float)); /* +1: see resize_row */
    if (!rows || !sum) goto end;
    status = DAMAGED;
    if (down->first) jpeg_skip_scanlines(&info, down->first);
    for (int y = 0; y < count;) {
        JSAMPROW lines[16];
        int some = count - y < 16 ? count - y : 16;
        for (int k = 0; k < some; k++) lines[k] = rows + stride * (size_t)(y + k);
        int got = jpeg_read_scanlines(&info, lines, some);
        if (got < 1) goto end;
        y += got;
    }
    if (handler.missing) goto end;

    for (int y = 0; y < size; y++) {
        int values = CHANNELS * (across->last - across->first);
        add_rows(sum, rows + stride * (size_t)(down->start[y] - down->first) + (size_t)skip * CHANNELS, stride,
                 down->weight + (size_t)y * down->most, down->count[y], values);
        resize_row(out + 3 * (size_t)size * y, sum, across, size, v->flip);
    }
    status = OK;
end:
    jpeg_destroy_decompress(&info);
    if (filters) {
        free_filter(&filters[0]);
        free_filter(&filters[1]);
    }
    free(filters);
    free(rows);
    free(sum);
    return status;
}

/* out: uint8 [count][size][size][3]. status: int32 [count]; images that aren't OK are unchanged or half written.
 * scaled: whether images may be decoded at 1/2, 1/4 or 1/8, and by baseline.h. by_libjpeg: never by baseline.h. Returns the
 * number of images that aren't OK. */
int decode_batch(int count, const uint8_t *const *data, const size_t *lengths, const view *views, int size, int scaled,
                 int by_libjpeg, uint8_t *out, int32_t *status) {
    int bad = 0;
    baseline *state = by_libjpeg ? NULL : calloc(1, sizeof(baseline));
    for (int i = 0; i < count; i++) {
        uint8_t *to = out + (size_t)i * 3 * size * size;
        status[i] = NO_MEMORY;
        if (state || by_libjpeg) status[i] = decode_one(state, data[i], lengths[i], &views[i], size, scaled, to);
        bad += status[i] != OK;
    }
    free(state);
    return bad;
}

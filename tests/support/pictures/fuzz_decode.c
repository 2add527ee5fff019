/* Feeds pipeline/loader/native/decode.c damaged JPEGs: ROUNDS times, one of FILES is cut, overwritten, or both, and decoded
 * with boxes that may not fit. Built with -fsanitize=address,undefined; prints how many of the results were which. */
#include "../../../pipeline/loader/native/decode.c"

#include "fuzz.h"

static void size_of(const uint8_t *data, size_t length, view *v) {
    struct jpeg_decompress_struct info;
    errors handler;
    info.err = jpeg_std_error(&handler.base);
    handler.base.error_exit = on_error;
    handler.base.emit_message = on_message;
    jpeg_create_decompress(&info);
    if (!setjmp(handler.jump)) {
        jpeg_mem_src(&info, data, length);
        jpeg_read_header(&info, TRUE);
        v->height = (int32_t)info.image_height;
        v->width = (int32_t)info.image_width;
    }
    jpeg_destroy_decompress(&info);
}

int main(int argc, char **argv) {
    int rounds = atoi(argv[1]), results[6] = {0};
    for (int round = 0; round < rounds; round++) {
        size_t length;
        uint8_t *whole = read_file(argv[2 + draw(argc - 2)], &length);
        view v = {1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0};
        if (draw(2)) size_of(whole, length, &v); /* as the index says, whatever the bytes say */
        uint32_t kind = draw(4);
        for (uint32_t n = kind ? 1 + draw(20) : 0; n; n--) whole[draw(draw(3) || length < 700 ? (uint32_t)length : 700)] = (uint8_t)draw(256);
        if (kind == 3) length = draw((uint32_t)length);
        uint8_t *data = malloc(length ? length : 1); /* exactly as long, so that a read behind it is seen */
        memcpy(data, whole, length);
        if (draw(2)) size_of(data, length, &v);
        if (v.height > 2000 || v.width > 2000) v.height = v.width = 1;
        int size = 1 + (int)draw(64);
        v.top = (int)draw(v.height), v.left = (int)draw(v.width);
        v.box_height = 1 + (int)draw(v.height - v.top), v.box_width = 1 + (int)draw(v.width - v.left);
        v.full_height = size + (int)draw(9), v.full_width = size + (int)draw(9);
        if (!draw(6)) v.full_height = size + (int)draw(MAX_FULL - size + 1); /* of an image of extreme shape */
        if (!draw(6)) v.full_width = size + (int)draw(MAX_FULL - size + 1);
        v.out_top = (int)draw(v.full_height - size + 1), v.out_left = (int)draw(v.full_width - size + 1);
        v.flip = (int)draw(2);
        if (!draw(20)) v.box_width += (int)draw(3), v.top -= (int)draw(2);
        size_t pixels = 3 * (size_t)size * size;
        uint8_t *out = malloc(2 * pixels);
        int32_t statuses[2];
        const uint8_t *images[] = {data, data}; /* twice, for tables are kept from image to image */
        size_t lengths[] = {length, length};
        view views[] = {v, v};
        decode_batch(2, images, lengths, views, size, draw(5) > 0, draw(8) == 0, out, statuses);
        int32_t status = statuses[0];
        results[status]++;
        if (status != statuses[1] || (status == OK && memcmp(out, out + pixels, pixels))) abort();
        if (status == OK) { /* written in full: the sanitizer sees reads of what isn't, valgrind's way */
            unsigned sum = 0;
            for (size_t i = 0; i < pixels; i++) sum += out[i];
            if (sum > 255u * pixels) abort();
        }
        free(out);
        free(data);
        free(whole);
    }
    printf("ok %d damaged %d unsupported %d other-size %d no-memory %d bad-box %d\n", results[0], results[1], results[2],
           results[3], results[4], results[5]);
    return 0;
}

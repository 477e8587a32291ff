"""Deliberate mistakes in kernels/attention, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

from attention_probes import How


@dataclass(frozen=True)
class Mutation:
    """In `file`, `old` (which occurs once) becomes `new`; the check `how` has to notice."""

    file: str
    name: str
    old: str
    new: str
    how: How = "result"


# How the text goes on tells one barrier from another.
FLASH_FIRST = "    simt::copy_async_wait<0>();\n    simt::sync_block();\n    typename Math::Queries"
FLASH_NEXT = "      simt::copy_async_wait<0>();\n      simt::sync_block();\n      tile = next;"
SHORT_KEYS = "  simt::copy_async_wait<1>();  // the values may still be on their way\n"
SHORT_VALUES = "  simt::copy_async_wait<0>();\n  simt::sync_warp();\n  float out"


def _without(text: str, piece: str) -> str:
    assert text.count(piece) == 1
    return text.replace(piece, "")


def _flash() -> list[Mutation]:
    sync, file = "simt::sync_block();", "flash.cuh"
    loop = "  SIMT_UNROLL\n  for (int h = 0; h < 2; ++h) {\n    const float factor"
    result_row = f"  simt::sync_warp();\n{loop}"
    store = "  simt::sync_warp();\n  const int first"
    tail = "exclude_tail(score, a.keys - key)"
    return [
        Mutation(file, "barrier after the first copies", FLASH_FIRST, _without(FLASH_FIRST, sync)),
        Mutation(file, "barrier of the pipeline", FLASH_NEXT, _without(FLASH_NEXT, sync)),
        Mutation(file, "barrier of the pipeline, race", FLASH_NEXT, _without(FLASH_NEXT, sync),
                 "thread"),
        Mutation(file, "barrier of the pipeline, ptx", FLASH_NEXT, _without(FLASH_NEXT, sync),
                 "ptx"),
        Mutation(file, "wait for the first copies", FLASH_FIRST, FLASH_FIRST.replace("<0>", "<1>")),
        Mutation(file, "wait of the pipeline", FLASH_NEXT, FLASH_NEXT.replace("<0>", "<1>")),
        Mutation(file, "wait of the pipeline, ptx", FLASH_NEXT, FLASH_NEXT.replace("<0>", "<1>"),
                 "ptx"),
        Mutation(file, "commit", "  simt::copy_async_commit();\n", ""),
        Mutation(file, "warp barrier before the result", result_row,
                 _without(result_row, "simt::sync_warp();"), "thread"),
        Mutation(file, "warp barrier after the result", store,
                 _without(store, "simt::sync_warp();"), "thread"),
        Mutation(file, "keys beyond M", tail, "exclude_tail(score, a.keys - key + 1)"),
        Mutation(file, "rows of keys beyond M", "count = a.keys - tile",
                 "count = a.keys + 1 - tile"),
        Mutation(file, "scale without log2(e)", "a.score_scale * kLog2e", "a.score_scale"),
        Mutation(file, "no output scale", "row_sum(softmax.sum[h])) * a.output_scale",
                 "row_sum(softmax.sum[h]))"),
        Mutation(file, "no rescaling of sums", "*= rescale[e >> 1]", "*= 1.0f"),
        Mutation(file, "rescaling of the other row", "rescale[e >> 1]", "rescale[e & 1]"),
        Mutation(file, "mask of the wrong row", "row + 8, key / 32", "row + 4, key / 32"),
        Mutation(file, "fill swapped", "a.zero_score ? 0.0f : -INFINITY",
                 "a.zero_score ? -INFINITY : 0.0f"),
        Mutation(file, "tiles of head 0", "a.mask_heads == 1 ? 0 : simt::block_y()", "0"),
        Mutation(file, "the stage in use is filled", "(stage ^ 1) * 2 * kTileBytes",
                 "stage * 2 * kTileBytes"),
        Mutation(file, "pitch of keys", "keys + u * 16 * Math::kPitch)",
                 "keys + u * 16 * Math::kRowBytes)"),
        Mutation(file, "queries of the next warp", "query_tile + warp_row * Math::kPitch);",
                 "query_tile + (warp_row ^ 16) * Math::kPitch);"),
    ]  # fmt: skip


def _short() -> list[Mutation]:
    file, sync = "short.cuh", "  simt::sync_warp();\n"
    reuse = "  simt::sync_warp();  // all lanes are done with the tiles\n"
    merge = "statistics, a);\n  simt::sync_block();\n"
    return [
        Mutation(file, "barrier before the merge", merge,
                 _without(merge, "  simt::sync_block();\n")),
        Mutation(file, "barrier before the merge, ptx", merge,
                 _without(merge, "  simt::sync_block();\n"), "ptx"),
        Mutation(file, "warp barrier before reuse", reuse, "", "thread"),
        Mutation(file, "warp barrier after keys", SHORT_KEYS + sync, SHORT_KEYS, "thread"),
        Mutation(file, "warp barrier after values", SHORT_VALUES, _without(SHORT_VALUES, sync),
                 "thread"),
        Mutation(file, "wait for keys", SHORT_KEYS, ""),
        Mutation(file, "wait for values", SHORT_VALUES, SHORT_VALUES.replace("<0>", "<1>")),
        Mutation(file, "wait for values, ptx", SHORT_VALUES, SHORT_VALUES.replace("<0>", "<1>"),
                 "ptx"),
        Mutation(file, "rows beyond N", "block_row + row >= a.queries",
                 "block_row + row > a.queries"),
        Mutation(file, "mask bits of another warp", ">> first % 32", ""),
        Mutation(file, "keys beyond M", "exclude_tail(score, count);", ""),
        Mutation(file, "scale without log2(e)", "a.score_scale * kLog2e", "a.score_scale"),
        Mutation(file, "no output scale", "inverse_or_zero(total) * a.output_scale",
                 "inverse_or_zero(total)"),
        Mutation(file, "sums without their share", "total += share * statistics",
                 "total += statistics"),
        Mutation(file, "a warp's maximum is missed",
                 "for (int w = 1; w < kShortWarps; ++w) highest",
                 "for (int w = 2; w < kShortWarps; ++w) highest"),
        Mutation(file, "fill swapped", "a.zero_score ? 0.0f : -INFINITY",
                 "a.zero_score ? -INFINITY : 0.0f"),
        Mutation(file, "regions overlap",
                 "const int region = short_region_bytes(a.keys, Math::kHeadDim, Math::kInt8);",
                 "const int region = short_region_bytes(16, Math::kHeadDim, Math::kInt8);"),
    ]  # fmt: skip


def _plain() -> list[Mutation]:
    file = "plain.cuh"
    return [
        Mutation(file, "keys beyond M", "(1u << left) - 1", "(2u << left) - 1"),
        Mutation(file, "rows beyond N", "if (row >= a.queries) return;",
                 "if (row > a.queries) return;", "address"),
        Mutation(file, "an eighth of the product", "  sum += simt::shuffle_xor(sum, 2);\n", ""),
        Mutation(file, "half of the keys", "  state.merge(16);\n", ""),
        Mutation(file, "sum without rescaling", "before = sum * rescale,",
                 "before = sum,"),
        Mutation(file, "scale without log2(e)", "exp2((score - highest) * kLog2e)",
                 "exp2(score - highest)"),
        Mutation(file, "NaN dropped", "state.sum = fmaf(any ? score : 0.0f, 0.0f, state.sum);", ""),
        Mutation(file, "forbidden scores count", "if (!(allowed >> bit & 1)) score = 0.0f;", ""),
        Mutation(file, "a key too many per round",
                 "    present &= present - 1;\n    const bool any", "    const bool any"),
        Mutation(file, "elements beyond the head", "if (column(s) < head_dim) load_four",
                 "load_four"),
        Mutation(file, "a lane's columns", "(simt::lane() & 7) * 4", "(simt::lane() & 3) * 4"),
    ]  # fmt: skip


def _softmax_and_bias() -> list[Mutation]:
    return [
        Mutation("softmax.cuh", "mask bits of the wrong column", ">> fragment_column();", ";"),
        Mutation("softmax.cuh", "mask bit off by one", "(n % 4 * 8 + (e & 1)) & 1",
                 "(n % 4 * 8 + (e & 1) + 1) & 1"),
        Mutation("softmax.cuh", "mask bits of the wrong row", "allowed[e >> 1][n / 4]",
                 "allowed[e & 1][n / 4]"),
        Mutation("softmax.cuh", "mask word off by one", "[n / 4] >>", "[0] >>"),
        Mutation("softmax.cuh", "tail off by one", "(e & 1) >= count", "(e & 1) > count"),
        Mutation("softmax.cuh", "NaN dropped",
                 "sum[e >> 1] = fmaf(score[n][e], 0.0f, sum[e >> 1]);", ""),
        Mutation("softmax.cuh", "NaN becomes 0", "sum == 0.0f ? 0.0f", "!(sum > 0.0f) ? 0.0f"),
        Mutation("softmax.cuh", "no key gives NaN", "sum == 0.0f ? 0.0f : 1.0f / sum",
                 "1.0f / sum"),
        Mutation("softmax.cuh", "maximum starts at -inf", "max[2] = {-FLT_MAX, -FLT_MAX}",
                 "max[2] = {-INFINITY, -INFINITY}"),
        Mutation("softmax.cuh", "sum without rescaling", "      sum[h] *= rescale[h];\n", ""),
        Mutation("softmax.cuh", "maximum of one lane", "      highest = row_max(highest);\n", ""),
        Mutation("softmax.cuh", "accumulator halves swapped",
                 "packed[1] = simt::pack_halves(weight[2 * u][2], weight[2 * u][3]);",
                 "packed[1] = simt::pack_halves(weight[2 * u][3], weight[2 * u][2]);"),
        Mutation("softmax.cuh", "weights of the wrong tile",
                 "packed[2] = simt::pack_halves(weight[2 * u + 1]",
                 "packed[2] = simt::pack_halves(weight[2 * u]"),
        Mutation("bias.cuh", "sign", "slope(-unit", "slope(unit"),
        Mutation("bias.cuh", "row of the lower half", "grid.place(row + 8)", "grid.place(row + 7)"),
        Mutation("bias.cuh", "key off by one", "fragment_column() + e)", "fragment_column())"),
        Mutation("bias.cuh", "slope of head 0", "slopes[simt::block_y()]", "slopes[0]"),
        Mutation("bias.cuh", "squared distance", "simt::sqrt(y * y + x * x)", "(y * y + x * x)"),
        Mutation("bias.cuh", "row of the grid", "(position + 0.5f) * inverse",
                 "(position + 1.0f) * inverse"),
    ]  # fmt: skip


def _tiles_and_products() -> list[Mutation]:
    copy = "rows + (valid ? row * stride + first : 0);"
    return [
        Mutation("tiles.cuh", "row beyond the tensor is read", "valid = row < count",
                 "valid = row <= count"),
        Mutation("tiles.cuh", "row beyond the tensor is read, ptx", "valid = row < count",
                 "valid = row <= count", "ptx"),
        Mutation("tiles.cuh", "row beyond the tensor is read, address", "valid = row < count",
                 "valid = row <= count", "address"),
        Mutation("tiles.cuh", "no zeros for the tail", "const bool valid = row < count;",
                 "const bool valid = true;"),
        Mutation("tiles.cuh", "row beyond the tensor is written", "if (row >= count) return;",
                 "if (row > count) return;"),
        Mutation("tiles.cuh", "stride", copy, copy.replace("row * stride", "row * kRowBytes")),
        Mutation("tiles.cuh", "rows swapped", "(pair & 3) << 1 | (pair >> 2 & 1)",
                 "(pair & 3) << 1"),
        Mutation("tiles.cuh", "left operand's halves", "(simt::lane() >> 4) * 16",
                 "(simt::lane() >> 3 & 1) * 16"),
        Mutation("tiles.cuh", "right operand's halves",
                 "((lane & 7) + (lane >> 4) * 8) * pitch + ((lane >> 3) & 1) * 16",
                 "((lane & 7) + (lane >> 3 & 1) * 8) * pitch + (lane >> 4) * 16"),
        Mutation("tiles.cuh", "fragment's columns", "(simt::lane() & 3) * 2", "(simt::lane() & 3)"),
        Mutation("tiles.cuh", "sum of half a row", "return value + simt::shuffle_xor(value, 2);",
                 "return value;"),
        Mutation("half_math.cuh", "fragments of the wrong keys",
                 "multiply_f16(high, queries.part[d], b[2], b[3])",
                 "multiply_f16(high, queries.part[d], b[0], b[1])"),
        Mutation("half_math.cuh", "fragments swapped",
                 "multiply_f16(low, queries.part[d], b[0], b[1])",
                 "multiply_f16(low, queries.part[d], b[1], b[0])"),
        Mutation("half_math.cuh", "values not transposed", "load_matrix_x4_transposed(b, left",
                 "load_matrix_x4(b, left"),
        Mutation("half_math.cuh", "a part of the row",
                 "load_matrix_x4(b, right_operand(keys, kPitch) + d * 32)",
                 "load_matrix_x4(b, right_operand(keys, kPitch))"),
        Mutation("half_math.cuh", "halves of a result swapped",
                 "simt::pack_halves(out[n][2 * h] * factor, out[n][2 * h + 1] * factor)",
                 "simt::pack_halves(out[n][2 * h + 1] * factor, out[n][2 * h] * factor)"),
        Mutation("half_math.cuh", "sums of the other row", "{out[n][2 * h],\n",
                 "{out[n][2 - 2 * h],\n"),
        Mutation("half_math.cuh", "misaligned matrix rows", "left_operand(values, kPitch) + d * 32",
                 "left_operand(values, kPitch) + d * 32 + 8"),
        Mutation("half_math.cuh", "misaligned matrix rows, ptx",
                 "left_operand(values, kPitch) + d * 32",
                 "left_operand(values, kPitch) + d * 32 + 8", "ptx"),
        Mutation("int8_math.cuh", "bytes unsigned", "^ 0x00800080u", ""),
        Mutation("int8_math.cuh", "odd bytes", "even_bytes_to_halves(b[0] >> 8)",
                 "even_bytes_to_halves(b[0])"),
        Mutation("int8_math.cuh", "16 that are left",
                 "      simt::multiply_s8_k16(sum[1], rest, b[1]);\n", ""),
        Mutation("int8_math.cuh", "fragments swapped",
                 "multiply_s8_k32(sum[1], queries.part[d], b[2], b[3])",
                 "multiply_s8_k32(sum[1], queries.part[d], b[3], b[2])"),
        Mutation("int8_math.cuh", "rounding", "simt::round_even(value[c])", "floorf(value[c])"),
        Mutation("int8_math.cuh", "clamped too high", "127.0f)", "128.0f)"),
        Mutation("int8_math.cuh", "clamped too low", "-128.0f)", "-129.0f)"),
        Mutation("int8_math.cuh", "elements of a store",
                 "{out[2 * d][2 * h], out[2 * d + 1][2 * h], out",
                 "{out[2 * d + 1][2 * h], out[2 * d][2 * h], out"),
    ]  # fmt: skip


def _mask_and_plan() -> list[Mutation]:
    return [
        Mutation("head.cuh", "mask of head 0", "a.mask_heads == 1 ? 0 : head", "0"),
        Mutation("head.cuh", "mask rows beyond N", "row < queries", "row <= queries", "address"),
        Mutation("head.cuh", "mask words beyond M", "word < view.words", "word <= view.words",
                 "address"),
        Mutation("head.cuh", "keys of image 0", "+ image * a.k_batch", ""),
        Mutation("head.cuh", "values of head 0", "image * a.v_batch + head * row_bytes",
                 "image * a.v_batch"),
        Mutation("head.cuh", "tiles from 32 on", "tile + 32", "tile"),
        Mutation("head.cuh", "a tile is skipped", "low_ &= low_ - 1;",
                 "low_ &= low_ - 1, low_ &= low_ - 1;"),
        Mutation("head.cuh", "high word of tiles", "words > 1 ? tiles[1] : 0", "0"),
        Mutation("pack.h", "occupancy of the wrong tile", "tile = word / 2", "tile = word / 3"),
        Mutation("pack.h", "occupancy without zero fill", "fill == Fill::kZeroScore || ", ""),
        Mutation("pack.h", "occupancy of the first queries", "row / kFlashRows) * wide",
                 "0) * wide"),
        Mutation("planner.cpp", "blocks rounded down", "(p.queries + rows - 1) / rows",
                 "(p.queries + rows - 17) / rows"),
        Mutation("planner.cpp", "scale without the keys' step", "p.scale} * p.q_scale * p.k_scale",
                 "p.scale} * p.q_scale"),
        Mutation("planner.cpp", "row of keys", "a.k_row = p.k_row * size",
                 "a.k_row = p.q_row * size"),
        Mutation("planner.cpp", "shared memory of float16",
                 "flash_shared_bytes(p.head_dim * size_of(p.type))",
                 "flash_shared_bytes(p.head_dim)"),
        Mutation("layout.h", "shared memory of one stage", "return 5 * kFlashRows",
                 "return 3 * kFlashRows"),
        Mutation("layout.h", "statistics not counted", "+ 2 * kShortRows * 4)",
                 "+ kShortRows * 4)"),
        Mutation("layout.h", "even pitch, half of it", "(row_bytes / 16 | 1) * 16",
                 "(row_bytes / 16 - 1) * 16"),
        Mutation("layout.h", "span of 16 for more keys", "keys > kShortKeys / 2 ? 32 : 16",
                 "keys > kShortKeys ? 32 : 16"),
    ]  # fmt: skip


MUTATIONS = [
    *_flash(), *_short(), *_plain(), *_softmax_and_bias(), *_tiles_and_products(),
    *_mask_and_plan(),
]  # fmt: skip

// Reads a command line with llama.cpp's own parser and prints what it understood: `parse_command llama-server ...`.
#include "arg.h"
#include "common.h"

#include <cstdio>
#include <string>

int main(int argc, char ** argv) {
    const std::string program = argv[1];
    llama_example kind = LLAMA_EXAMPLE_SERVER;
    if (program == "llama-cli")        kind = LLAMA_EXAMPLE_CLI;
    if (program == "llama-perplexity") kind = LLAMA_EXAMPLE_PERPLEXITY;

    common_params params;
    if (!common_params_parse(argc - 1, argv + 1, params, kind, nullptr)) {
        return 1;
    }
    printf("context %d\n",         params.n_ctx);
    printf("batch %d\n",           params.n_batch);
    printf("micro_batch %d\n",     params.n_ubatch);
    printf("gpu_layers %d\n",      params.n_gpu_layers);
    printf("slots %d\n",           params.n_parallel);
    printf("unified_cache %d\n",   (int) params.kv_unified);
    printf("flash_attention %d\n", (int) params.flash_attn_type);
    printf("cache_k %s\n",         ggml_type_name(params.cache_type_k));
    printf("cache_v %s\n",         ggml_type_name(params.cache_type_v));
    printf("cache_on_gpu %d\n",    (int) !params.no_kv_offload);
    printf("op_offload %d\n",      (int) !params.no_op_offload);
    printf("full_window %d\n",     (int) params.swa_full);
    printf("load_mode %s\n",       llama_load_mode_name(params.load_mode));
    printf("repack %d\n",          (int) !params.no_extra_bufts);
    printf("host_buffer %d\n",     (int) !params.no_host);
    printf("fits %d\n",            (int) params.fit_params);
    printf("host_cache_mib %d\n",  params.cache_ram_mib);
    printf("split_mode %d\n",      (int) params.split_mode);
    printf("main_gpu %d\n",        params.main_gpu);
    printf("tensor_split %g %g %g\n", params.tensor_split[0], params.tensor_split[1], params.tensor_split[2]);
    for (const auto & override : params.tensor_buft_overrides) {
        if (override.pattern) {
            printf("override %s\n", override.pattern);
        }
    }
}

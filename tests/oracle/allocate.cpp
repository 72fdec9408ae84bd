// Loads a model as llama-server would with a command line, and prints the bytes that llama.cpp allocates:
// `allocate no_alloc|really llama-server -m FILE ...` gives `weights`, `context` and `compute` of the CPU.
#include "arg.h"
#include "common.h"
#include "ggml-backend.h"
#include "llama.h"
#include "../src/llama-ext.h"

#include <algorithm>
#include <cstdio>
#include <string>

int main(int argc, char ** argv) {
    common_params params;
    if (!common_params_parse(argc - 2, argv + 2, params, LLAMA_EXAMPLE_SERVER, nullptr)) {
        return 1;
    }
    params.n_outputs_max = params.n_parallel; // as tools/server/server-context.cpp has it
    llama_backend_init();
    llama_model_params of_model = common_model_params_to_llama(params);
    of_model.no_alloc = std::string(argv[1]) == "no_alloc";
    of_model.load_mode = LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(params.model.path.c_str(), of_model);
    if (!model) {
        return 1;
    }
    llama_context * context = llama_init_from_model(model, common_context_params_to_llama(params));
    if (!context) {
        return 1;
    }
    llama_memory_breakdown_data sum;
    for (const auto & [type, found] : llama_get_memory_breakdown(context)) {
        sum.model   += found.model;
        sum.context += found.context;
        sum.compute += found.compute;
    }
    printf("weights %zu\ncontext %zu\ncompute %zu\n", sum.model, sum.context, sum.compute);
    llama_free(context);
    llama_model_free(model);
}

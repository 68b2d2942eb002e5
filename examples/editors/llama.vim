" Into your vimrc or init.vim, with any plugin manager:
"   Plug 'ggml-org/llama.vim'
" Tab takes the grey text, Shift-Tab its first line, Ctrl-B its first word.
let g:llama_config = {
    \ 'endpoint_fim':     'http://127.0.0.1:8012/infill',
    \ 'endpoint_inst':    'http://127.0.0.1:8012/v1/chat/completions',
    \ 't_max_predict_ms': 1000,
    \ 'ring_n_chunks':    8,
    \ }

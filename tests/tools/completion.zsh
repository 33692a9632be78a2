#!/usr/bin/env zsh
# What zsh makes of words when they are completed, with the functions of FOLDER and the tools on PATH: completion.zsh FOLDER
zmodload zsh/zpty || exit 77
export TERM=dumb
zpty shell zsh -f -i
# Control-T completes and prints the line, between marks that are not in what is typed.
zpty -w shell "PS1= RPS1=; unset zle_bracketed_paste; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D"
zpty -w shell 'show() { zle complete-word; print -r -- "<""$BUFFER"">" }; zle -N show; bindkey "^T" show; print -r -- rea""dy'
zpty -r -m shell output '*ready*' || exit 1
expect() {  # what is typed, what becomes of it
  local output
  zpty -w -n shell $'\C-u'"$1"$'\C-t'
  zpty -r -m shell output '*<*>*'
  [[ $output == *"<$2>"* ]] || { print -r -- "completion of '$1': ${(q)output}" && exit 1 }
}
expect 'q4-cache explai' 'q4-cache explain '
expect 'q4-cache pack --tun' 'q4-cache pack --tuning '
expect 'q4-info --conf' 'q4-info --config '
expect 'q4-convert a b --to gptq_v' 'q4-convert a b --to gptq_v2 '
expect 'q4-bench --model llama-3-8' 'q4-bench --model llama-3-8b '
expect 'q4-verify model --activation b' 'q4-verify model --activation bf16 '
zpty -d shell

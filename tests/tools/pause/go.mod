module qwen3-stack/tools/pause

go 1.22

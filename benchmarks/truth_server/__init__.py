"""A server whose every token time is known: ``python -m benchmarks.truth_server [port=0] [ttft_ms=50] ...``.

The client is checked against it (``python -m benchmarks selftest``). The first line of its output is {"url": ...}.

It speaks /v1/chat/completions, /v1/completions, /generate (LMDeploy), /completion (llama.cpp), /api/generate and
/api/chat (Ollama), /api/v1/classify and /api/v1/inference, and tells what it is asked with GET: /ready, /health,
/v1/models, /api/tags, /metrics, and

/_truth          every request, oldest first: when it arrived, when each event was due and really written, its tokens,
                 and what a client must make of it; ?since=NUMBER&limit=COUNT gives a page
/_truth/health   counts, the most requests at once, how late this server itself was
/_truth/modes    the ways to answer

Times are perf_counter seconds, the clock of every process of the same machine, so that a late timer of this server is
not mistaken for an error of the client. The modes of an answer are joined by ``+`` and named by the path before the
API's own (http://HOST:PORT/mode/role_first+nospace), by ?mode=, by the header X-Truth-Mode, by the ``model`` of the
request, or by the setting ``mode``, in this order.
"""

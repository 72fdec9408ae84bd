.PHONY: check test oracle bench docs

check:  ## linters and types
	ruff check .
	ruff format --check .
	mypy

test:  ## the default suite; CONTRIBUTING.md says what it takes
	python -m pytest

oracle:  ## against transformers, llama.cpp and its converter
	tools/install-oracles
	python -m pytest -m oracle

bench:  ## encoders and whole conversions beside llama.cpp, in one run
	python tools/bench_encoders.py
	python tools/bench_convert.py

docs:  ## the picture of the README and the page of commands
	python tools/make_docs.py

"""Asks a model: prompts, lines of standard input, or a whole file; docs/inference.md.

python -m t5x_lite.infer --model_dir=runs/qa --prompt "What is the capital of Japan?"
python -m t5x_lite.infer --model_dir=runs/qa < questions.txt
python -m t5x_lite.infer --model_dir=runs/qa --input=questions.jsonl --output=answers.jsonl
python -m t5x_lite.infer --model_dir=runs/qa --mode=score --prompt "What is the capital of Japan?" --target Tokyo
"""

from t5x_lite import doors, host


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run folder, Hugging Face or T5X folder, or hub name")
        parser.add_argument("--step", type=int, help="checkpoint; default: the best one, else the latest")
        parser.add_argument("--mode", choices=["generate", "score"], default="generate", help="default: generate")
        asked = parser.add_argument_group("what is asked")
        asked.add_argument("--prompt", action="append", dest="prompts", help="repeatable; default: lines of stdin")
        asked.add_argument("--target", action="append", dest="targets", help="repeatable; what --mode=score scores")
        asked.add_argument("--input", metavar="FILE", help=".jsonl or .csv with 'prompt' ('target'), .txt of prompts")
        asked.add_argument("--output", metavar="FILE", help=".jsonl; killed, the same command goes on with it")
        asked.add_argument("--few_shot", metavar="FILE", help=".jsonl or .csv of 'prompt', 'answer': worked examples")
        answers = parser.add_argument_group("answers")
        answers.add_argument("--scores", action="store_true", help="print log-probabilities before the answers")
        answers.add_argument("--max_tokens", type=int, help="longest answer; default: the run's target length")
        answers.add_argument("--beams", type=int, help="beams of a search; default: 1, the likeliest token each time")
        answers.add_argument("--n_best", type=int, help="answers to each prompt: of the beams, or samples; default: 1")
        answers.add_argument("--length_alpha", type=float, help="prefers longer beams; 0.6 is usual; default: 0")
        answers.add_argument("--temperature", type=float, help="samples; default: 0, no sampling")
        answers.add_argument("--top_k", type=int, help="samples from so many tokens; default: 0, from all")
        answers.add_argument("--top_p", type=float, help="samples from so much of the probability; default: 1")
        answers.add_argument("--min_p", type=float, help="samples tokens this likely beside the likeliest; default: 0")
        answers.add_argument("--seed", type=int, default=0, help="of the samples; default: 0")
        answers.add_argument("--repetition_penalty", type=float, help="of tokens written already; default: 1, none")
        answers.add_argument("--no_repeat_ngram", type=int, help="this many tokens never come twice; default: 0, off")
        doors.process_flags(parser)

    args = doors.parse_flags(argv, __doc__, flags)
    host.keep_freed_memory()
    host.keep_compiled_programs()
    from t5x_lite.decoding import jobs

    jobs.infer(**vars(args))


if __name__ == "__main__":
    doors.run_door(main)

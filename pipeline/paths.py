"""Every artefact's path, once; relative to the repository's root."""

from pathlib import Path

# collect
VIDEOS = Path("data/collect/videos.jsonl")
ASKED = Path("data/collect/questions.jsonl")  # about videos
WEIGHTS = Path("data/weights")  # KIND.json: what the sources of pretrained parts hold

# filter
MANIFEST = Path("data/filter/manifest.jsonl")
CAPTIONS = Path("data/text/captions.jsonl")  # of clips, by sample key
QUESTIONS = Path("data/questions/questions.jsonl")  # about clips, likewise
FILTER_METRICS = Path("metrics/filter.json")

# decode: shards of frames
FRAMES = Path("data/decode")
DECODE_METRICS = Path("metrics/decode.json")

# encode: shards of patch tokens and latents
ENCODED = Path("data/encode")
ENCODE_METRICS = Path("metrics/encode.json")

# train: the first seed's model, seed-N/ below it; those without fine passes, and those with several
# tokens a frame and no query, likewise
MODEL = Path("models/foveated")
COARSE_ONLY = MODEL / "coarse-only"
POOLED = MODEL / "pooled"  # a folder for each number of tokens
TRAIN_METRICS = Path("metrics/train.json")
CURVES = Path("plots/train.csv")
VALIDATION = Path("plots/validation.csv")

# instruct, prefer: models in folders like those of train
INSTRUCTED = Path("models/instructed")
INSTRUCTED_AFTER = INSTRUCTED / "question-after"
INSTRUCTED_POOLED = INSTRUCTED / "pooled"
INSTRUCT_METRICS = Path("metrics/instruct.json")
INSTRUCT_CURVES = Path("plots/instruct.csv")
INSTRUCT_VALIDATION = Path("plots/instruct_validation.csv")
PREFERRED = Path("models/preferred")
PREFER_METRICS = Path("metrics/prefer.json")
PREFER_CURVES = Path("plots/prefer.csv")

# quiz
QUIZ_METRICS = Path("metrics/quiz.json")
QUIZ_BY_QUESTION = Path("plots/quiz.csv")
QUIZ_PAGE = Path("plots/quiz")  # index.html and its pictures
QUIZ_PLOT = QUIZ_PAGE / "accuracy.png"
QUIZ_TOKENS_PLOT = QUIZ_PAGE / "accuracy_by_tokens.png"

# evaluate: its figures in full, and rounded ones for people, git and `dvc metrics diff`
EVALUATION = Path("data/evaluation.json")
EVALUATE_METRICS = Path("metrics/evaluate.json")
BY_CLIP = Path("plots/evaluate.csv")
BY_FRAME, BY_FRAME_PLOT = Path("plots/evaluate_frames.csv"), Path("plots/ratio_by_frame.png")
BY_MOTION, BY_MOTION_PLOT = Path("plots/evaluate_motion.csv"), Path("plots/ratio_by_motion.png")
CONTROLS_PLOT = Path("plots/controls.png")

# report
PAGE = Path("reports/index.html")
PICTURES = Path("reports/pictures")
FIGURES = Path("reports/figures.csv")
CARD = Path("reports/model_card.md")

# uncertainty: of all towers; their pictures, TOWER_icc.png and TOWER_frames.png, in a folder
UNCERTAINTY_METRICS = Path("metrics/uncertainty.json")
UNCERTAINTY = Path("plots/uncertainty.csv")
UNCERTAINTY_BY_PASSES = Path("plots/uncertainty_icc.csv")
UNCERTAINTY_PICTURES = Path("plots/uncertainty")

# calibrate
CALIBRATION_PRESET = Path("presets/calibration.yaml")
CALIBRATION_WORK = Path("build/calibrate")
CALIBRATE_METRICS = Path("metrics/calibrate.json")
CALIBRATE_PLOT = Path("plots/calibrate.png")
CALIBRATE_ANSWERS_METRICS = Path("metrics/calibrate_answers.json")
CALIBRATE_ANSWERS_PLOT = Path("plots/calibrate_answers.png")
